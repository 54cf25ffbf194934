"""FLUX.1 (dev, schnell and whatever has their architecture) through diffusers' FluxPipeline.

A latent is packed: [tokens, channels], a token being 2 x 2 positions of the VAE's grid.  dev was distilled to take a
guidance_scale, schnell to need none, in four steps, from 256 text tokens: more are given it unless max_sequence_length says so.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from neighbor_grpo.models.family import Family


class FluxCond(NamedTuple):
    text: Tensor  # [n, L, d]  T5 sequence
    pooled: Tensor  # [n, d']  CLIP


class Flux(Family):
    Cond = FluxCond
    encoders = ("text_encoder", "text_encoder_2")

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.image_ids = self.pipe._prepare_latent_image_ids(1, *self.grid, self.device, self.dtype)
        self.text_ids = torch.zeros(self.max_sequence_length, 3, device=self.device, dtype=self.dtype)

    def sequence_length(self) -> int:
        return min(self.default("max_sequence_length"), self.pipe.tokenizer_2.model_max_length)

    def size(self) -> tuple[int, int]:
        return (self.vae.config.sample_size,) * 2

    def embed(self, prompts: list[str], images: list[Path]) -> FluxCond:
        text, pooled, _ = self.pipe.encode_prompt(
            prompts, prompt_2=None, device=self.device, max_sequence_length=self.max_sequence_length
        )
        return FluxCond(text, pooled)

    def blank(self, n: int) -> FluxCond:
        kind = {"device": self.device, "dtype": self.dtype}
        return FluxCond(
            torch.zeros(n, self.max_sequence_length, self.config.joint_attention_dim, **kind),
            torch.zeros(n, self.config.pooled_projection_dim, **kind),
        )

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        channels, rows, columns = self.config.in_channels // 4, 2 * self.grid[0], 2 * self.grid[1]
        x = torch.randn(n, channels, rows, columns, generator=generator)
        return self.pipe._pack_latents(x, n, channels, rows, columns).to(self.device)

    def forward(self, x: Tensor, t: Tensor, cond: FluxCond) -> Tensor:
        guidance = torch.full_like(t, self.guidance_scale) if self.config.guidance_embeds else None
        return self.transformer(
            hidden_states=x,
            timestep=t,
            guidance=guidance,
            img_ids=self.image_ids,
            txt_ids=self.text_ids,
            encoder_hidden_states=cond.text,
            pooled_projections=cond.pooled,
            return_dict=False,
        )[0]

    def to_image(self, x: Tensor) -> Tensor:
        x = self.pipe._unpack_latents(x, self.height, self.width, self.pipe.vae_scale_factor)
        x = x / self.vae.config.scaling_factor + self.vae.config.shift_factor
        return self.vae.decode(x.to(self.vae.dtype), return_dict=False)[0]
