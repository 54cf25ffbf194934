"""Random-weight diffusers pipelines of the true layout, built offline."""

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from neighbor_grpo.worlds.scenes.pretrain import build_text


def small_vae(sample_size: int = 32) -> AutoencoderKL:
    """f4, of 4 channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=sample_size,
        scaling_factor=0.36,
        shift_factor=0.12,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def small_t5(words: int) -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=words, d_model=40, d_kv=8, d_ff=64, num_layers=1, num_heads=5, dropout_rate=0.0))


def build_flux(guidance: bool = True, dynamic_shift: bool = True) -> FluxPipeline:
    """A guidance-distilled FLUX with an f4 VAE of 4 channels, 24 T5 tokens and FLUX.1-dev's shifting rule."""
    torch.manual_seed(7)
    clip_tokenizer, clip, t5_tokenizer, t5 = build_text()
    t5_tokenizer.model_max_length = 24
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=clip.config.vocab_size,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=12,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    t5 = small_t5(t5.config.vocab_size)
    vae = small_vae()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=40,
        pooled_projection_dim=32,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=dynamic_shift, shift=3.0)
    return FluxPipeline(
        scheduler=scheduler,
        vae=vae,
        text_encoder=clip,
        tokenizer=clip_tokenizer,
        text_encoder_2=t5,
        tokenizer_2=t5_tokenizer,
        transformer=transformer,
    )


def without_variance(vae):
    """The VAE with the variance of its posterior at the lowest, e^-30: what is drawn from it is its mean."""
    last = getattr(vae, "quant_conv", None) or vae.encoder.conv_out
    channels = last.out_channels // 2
    last.weight.data[channels:], last.bias.data[channels:] = 0.0, -30.0
    return vae
