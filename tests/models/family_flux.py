"""FLUX.1 for the contract: a random-weight pipeline, and its own way to draw."""

import torch
from diffusers import FluxImg2ImgPipeline
from pipelines import build_flux as build  # noqa: F401
from pipelines import without_variance

LENGTH = 24  # text tokens of the pipeline that is built
SIZES = [(32, 32), (48, 32)]
GUIDED = None  # no classifier-free guidance
LORA = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]


def call(pipe, model, noise, prompts, steps):
    """Pictures [n, 3, H, W] in [0, 1] by the pipeline's own __call__, from noise [n, *latent]."""
    return pipe(
        prompts,
        height=model.height,
        width=model.width,
        num_inference_steps=steps,
        guidance_scale=model.guidance_scale,
        latents=noise,
        max_sequence_length=LENGTH,
        output_type="pt",
    ).images


def latents(pipe, images):
    """Clean latents by the image-to-image pipeline, of pictures [n, 3, H, W] in [-1, 1]."""
    without_variance(pipe.vae)
    z = FluxImg2ImgPipeline.from_pipe(pipe)._encode_vae_image(images, torch.Generator())
    return pipe._pack_latents(z, *z.shape)
