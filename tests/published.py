"""Pipelines of published sizes, without weights and with the bundled tokenizers."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from neighbor_grpo.worlds.scenes.pretrain import build_text

CLIP_L = CLIPTextConfig(
    vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768
)
CLIP_G = CLIPTextConfig(
    vocab_size=49408,
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    projection_dim=1280,
    hidden_act="gelu",
)
T5_XXL = T5Config(
    vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
)


def flux_dev(place: Path, **layers: int) -> Path:
    """FLUX.1-dev: 11.9 billion parameters, or fewer layers of it."""
    tokenizer, t5_tokenizer = tokenizers()
    with torch.device("meta"):
        pipe = FluxPipeline(
            transformer=FluxTransformer2DModel(guidance_embeds=True, **layers),
            vae=vae(0.3611, 0.1159),
            text_encoder=CLIPTextModel(CLIP_L),
            tokenizer=tokenizer,
            text_encoder_2=T5EncoderModel(T5_XXL),
            tokenizer_2=t5_tokenizer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
        )
    return saved(pipe, place)


def sd35_medium(place: Path) -> Path:
    """Stable Diffusion 3.5 medium: 2.5 billion parameters."""
    tokenizer, t5_tokenizer = tokenizers()
    with torch.device("meta"):
        transformer = SD3Transformer2DModel(
            sample_size=128,
            num_layers=24,
            attention_head_dim=64,
            num_attention_heads=24,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            pooled_projection_dim=2048,
            out_channels=16,
            pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)),
            qk_norm="rms_norm",
        )
        pipe = StableDiffusion3Pipeline(
            transformer=transformer,
            vae=vae(1.5305, 0.0609),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            text_encoder=CLIPTextModelWithProjection(CLIP_L),
            tokenizer=tokenizer,
            text_encoder_2=CLIPTextModelWithProjection(CLIP_G),
            tokenizer_2=tokenizer,
            text_encoder_3=T5EncoderModel(T5_XXL),
            tokenizer_3=t5_tokenizer,
        )
    return saved(pipe, place)


def vae(scaling: float, shift: float) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=16,
        sample_size=1024,
        scaling_factor=scaling,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def tokenizers() -> tuple:
    clip, _, t5, _ = build_text()
    clip.model_max_length, t5.model_max_length = 77, 512
    return clip, t5


def saved(pipe, place: Path) -> Path:
    """Save everything but weights."""
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module) and hasattr(part, "save_config"):
            part.save_config(place / name)
        elif isinstance(part, torch.nn.Module):
            part.config.save_pretrained(place / name)
        elif part is not None:
            part.save_pretrained(place / name)
    pipe.save_config(place)
    return place
