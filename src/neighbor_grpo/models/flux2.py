"""FLUX.2: dev through diffusers' Flux2Pipeline, the klein models through Flux2KleinPipeline.

A latent is packed: [tokens, channels], a token being 2 x 2 positions of the VAE's grid, whitened by the statistics of the
VAE's batch norm.  dev was distilled to take a guidance_scale; klein base takes cfg; klein was distilled to need neither.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch import Tensor

from neighbor_grpo.errors import UserError
from neighbor_grpo.models.family import Family


class Flux2Cond(NamedTuple):
    text: Tensor  # [n, L, d]  layers of the text encoder side by side


class Flux2(Family):
    Cond = Flux2Cond
    encoders = ("text_encoder",)

    def __init__(self, *args) -> None:
        super().__init__(*args)
        if self.cfg != 1 and self.pipe.config.get("is_distilled"):
            raise UserError(f"this FLUX.2 klein was distilled to need no guidance: set cfg to 1, not {self.cfg}")
        ids = self.pipe._prepare_latent_ids(torch.empty(1, 1, *self.grid))[0]
        text_ids = self.pipe._prepare_text_ids(torch.empty(1, self.max_sequence_length, 1))[0]
        self.image_ids, self.text_ids = ids.to(self.device), text_ids.to(self.device)

    @property
    def lora_targets(self) -> list[str]:
        """A single block's projections are one layer before the attention and one after, which has a double block's name."""
        after = [f"single_transformer_blocks.{n}.attn.to_out" for n in range(self.config.num_single_layers)]
        return [*super().lora_targets, "to_qkv_mlp_proj", *after]

    def sequence_length(self) -> int:
        tokenizer = getattr(self.pipe.tokenizer, "tokenizer", self.pipe.tokenizer)  # dev's is inside of a processor
        return min(self.default("max_sequence_length"), tokenizer.model_max_length)

    def size(self) -> tuple[int, int]:
        return (self.vae.config.sample_size,) * 2

    def embed(self, prompts: list[str], images: list[Path]) -> Flux2Cond:
        text, _ = self.pipe.encode_prompt(prompts, device=self.device, max_sequence_length=self.max_sequence_length)
        return Flux2Cond(text)

    def blank(self, n: int) -> Flux2Cond:
        shape = n, self.max_sequence_length, self.config.joint_attention_dim
        return Flux2Cond(torch.zeros(shape, device=self.device, dtype=self.dtype))

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        x = torch.randn(n, self.config.in_channels, *self.grid, generator=generator)
        return self.pipe._pack_latents(x).to(self.device)

    def mu(self, num_steps: int) -> float:
        return compute_empirical_mu(self.grid[0] * self.grid[1], num_steps)

    def forward(self, x: Tensor, t: Tensor, cond: Flux2Cond) -> Tensor:
        guidance = torch.full_like(t, self.guidance_scale) if self.config.guidance_embeds else None
        return self.transformer(
            hidden_states=x,
            timestep=t,
            guidance=guidance,
            img_ids=self.image_ids,
            txt_ids=self.text_ids,
            encoder_hidden_states=cond.text,
            return_dict=False,
        )[0]

    def to_image(self, x: Tensor) -> Tensor:
        norm = self.vae.bn
        x = x * (norm.running_var + norm.eps).sqrt().to(x.dtype) + norm.running_mean.to(x.dtype)
        x = self.pipe._unpatchify_latents(x.mT.unflatten(2, self.grid))
        return self.vae.decode(x.to(self.vae.dtype), return_dict=False)[0]
