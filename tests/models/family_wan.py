"""Wan, text to video, for the contract: a random-weight pipeline, and its own way to draw."""

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
    WanVideoToVideoPipeline,
)
from transformers import UMT5Config, UMT5EncoderModel

from neighbor_grpo.worlds.scenes.pretrain import build_text

LENGTH = 512  # text tokens of the pipeline
SIZES = [(32, 32), (48, 32)]
FRAMES = 5
GUIDED = 4.0
LORA = ["to_q", "to_k", "to_v", "to_out.0"]


def parts(residual: bool = False) -> dict:
    """All but transformers and scheduler: the true f8 VAE's layout, a frame for four, 4 channels; or that of TI2V-5B, f16."""
    torch.manual_seed(7)
    _, _, tokenizer, text = build_text()
    text = UMT5EncoderModel(
        UMT5Config(vocab_size=text.config.vocab_size, d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=3, dropout_rate=0.0)
    )
    kind = {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16}
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 2, 2],
        num_res_blocks=1,
        latents_mean=[-0.3, 0.2, 0.1, 0.4],
        latents_std=[1.4, 2.3, 0.8, 1.1],
        **(kind if residual else {}),
    )
    return {"tokenizer": tokenizer, "text_encoder": text, "vae": vae}


def transformer(channels: int = 4, **more) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=channels,
        out_channels=4,
        text_dim=24,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
        **more,
    )


def build(scheduler=None, expand_timesteps: bool = False) -> WanPipeline:
    return WanPipeline(
        **parts(residual=expand_timesteps),
        transformer=transformer(),
        expand_timesteps=expand_timesteps,
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def call(pipe, model, noise, prompts, steps):
    """Videos [n, T, 3, H, W] in [0, 1] by the pipeline's own __call__, from noise [n, *latent]."""
    return pipe(
        prompts,
        height=model.height,
        width=model.width,
        num_frames=model.frames,
        num_inference_steps=steps,
        guidance_scale=model.cfg,
        latents=noise,
        output_type="pt",
    ).frames


def latents(pipe, images):
    """Clean latents by the video-to-video pipeline, of videos [n, T, 3, H, W] in [-1, 1]: at time 0 nothing is added."""
    parts = {name: getattr(pipe, name) for name in ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")}
    parts["scheduler"].set_timesteps(sigmas=[0.0])
    other, size = WanVideoToVideoPipeline(**parts), images.shape[3:]
    return other.prepare_latents(
        images.transpose(1, 2), len(images), 4, *size, torch.float32, "cpu", torch.Generator(), timestep=torch.zeros(1)
    )
