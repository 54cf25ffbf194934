"""Pipelines of random weights about as large as the bundled FLUX (2 to 3 M parameters), for families that are not bundled."""

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

from neighbor_grpo.worlds.scenes.pretrain import build_text


def sd3() -> StableDiffusion3Pipeline:
    """Build SD3 for 64 x 64 pixels in 16 tokens."""
    torch.manual_seed(0)
    tokenizer, clip, t5_tokenizer, t5 = build_text()
    t5_tokenizer.model_max_length = 16
    clips = [
        CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=clip.config.vocab_size,
                hidden_size=32,
                projection_dim=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=12,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
            )
        )
        for _ in range(2)
    ]
    t5 = T5EncoderModel(
        T5Config(vocab_size=t5.config.vocab_size, d_model=64, d_kv=16, d_ff=128, num_layers=1, num_heads=4, dropout_rate=0.0)
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.5,
        shift_factor=0.06,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=16,
        out_channels=16,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=64,
        caption_projection_dim=128,
        pooled_projection_dim=64,
        pos_embed_max_size=16,
        dual_attention_layers=(0, 1),
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=clips[0],
        tokenizer=tokenizer,
        text_encoder_2=clips[1],
        tokenizer_2=tokenizer,
        text_encoder_3=t5,
        tokenizer_3=t5_tokenizer,
        transformer=transformer,
    )


def wan() -> WanPipeline:
    """Build Wan for 5 frames of 64 x 64 pixels in 32 tokens."""
    torch.manual_seed(0)
    _, _, tokenizer, t5 = build_text()
    text = UMT5EncoderModel(
        UMT5Config(vocab_size=t5.config.vocab_size, d_model=64, d_kv=16, d_ff=128, num_layers=1, num_heads=4, dropout_rate=0.0)
    )
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=16,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 16,
        latents_std=[1.0] * 16,
    )
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=16,
        out_channels=16,
        text_dim=64,
        freq_dim=64,
        ffn_dim=512,
        num_layers=6,
        rope_max_seq_len=64,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return WanPipeline(tokenizer=tokenizer, text_encoder=text, vae=vae, scheduler=scheduler, transformer=transformer)


BUILT = {  # name: (pipeline, settings of a run on it)
    "sd3": (sd3, ["model.height=64", "model.width=64"]),
    "wan": (wan, ["model.height=64", "model.width=64", "model.num_frames=5", "model.max_sequence_length=16"]),
}
