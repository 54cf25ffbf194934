"""Wan, a picture and text to video, for the contract: 2.1 with CLIP, and 2.2 TI2V-5B, which keeps the picture's frame."""

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline
from diffusers.utils import load_image
from family_wan import FRAMES, GUIDED, LENGTH, SIZES, parts, transformer  # noqa: F401
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

LORA = ["to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj"]
# of unlike sizes, none of them that of the video
IMAGES = [Image.fromarray(np.random.default_rng(n).integers(0, 255, (40 + n, 50, 3), np.uint8)) for n in range(3)]


def build(version: str = "2.1", **settings) -> WanImageToVideoPipeline:
    """2.1, 2.2-A14B or 2.2-TI2V-5B."""
    if version == "2.2-TI2V-5B":
        more = {**parts(residual=True), "transformer": transformer(), "expand_timesteps": True}
    elif version == "2.2-A14B":
        more = {**parts(), "transformer": transformer(12), "transformer_2": transformer(12), "boundary_ratio": 0.75}
    else:
        torch.manual_seed(8)
        clip = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
            )
        )
        small = {"shortest_edge": 32}, {"height": 32, "width": 32}
        more = {
            **parts(),
            "transformer": transformer(12, image_dim=16, added_kv_proj_dim=24, **settings),
            "image_encoder": clip,
            "image_processor": CLIPImageProcessor(size=small[0], crop_size=small[1]),
        }
    return WanImageToVideoPipeline(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), **more)


def call(pipe, model, noise, prompts, steps, images):
    """Videos [n, T, 3, H, W] in [0, 1] by the pipeline's own __call__, which takes one picture at a time."""
    return torch.cat(
        [
            pipe(
                load_image(str(image)),
                prompt,
                height=model.height,
                width=model.width,
                num_frames=model.frames,
                num_inference_steps=steps,
                guidance_scale=model.cfg,
                latents=x[None],
                output_type="pt",
            ).frames
            for (image,), prompt, x in zip(images, prompts, noise, strict=True)
        ]
    )
