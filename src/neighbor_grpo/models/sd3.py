"""Stable Diffusion 3 and 3.5 through diffusers' StableDiffusion3Pipeline.

A latent is the VAE's own: [channels, height, width] of its grid.
"""

from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from neighbor_grpo.models.family import Family


class SD3Cond(NamedTuple):
    text: Tensor  # [n, L, d]  both CLIP sequences side by side, then T5's (zeros when it was dropped)
    pooled: Tensor  # [n, d']  both CLIPs


class SD3(Family):
    Cond = SD3Cond
    encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")

    @property
    def patch(self) -> int:
        return self.config.patch_size

    def sequence_length(self) -> int:
        default, t5 = self.default("max_sequence_length"), self.pipe.tokenizer_3
        return default if t5 is None else min(default, t5.model_max_length)

    def size(self) -> tuple[int, int]:
        return (self.config.sample_size * self.pipe.vae_scale_factor,) * 2

    def longest(self) -> int | None:
        return self.config.pos_embed_max_size

    def embed(self, prompts: list[str], images: list[Path]) -> SD3Cond:
        text, _, pooled, _ = self.pipe.encode_prompt(
            prompts,
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        return SD3Cond(text, pooled)

    def blank(self, n: int) -> SD3Cond:
        length, kind = self.pipe.tokenizer_max_length + self.max_sequence_length, {"device": self.device, "dtype": self.dtype}
        return SD3Cond(
            torch.zeros(n, length, self.config.joint_attention_dim, **kind),
            torch.zeros(n, self.config.pooled_projection_dim, **kind),
        )

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        rows, columns = (self.patch * tokens for tokens in self.grid)
        return torch.randn(n, self.config.in_channels, rows, columns, generator=generator).to(self.device)

    def times(self, num_steps: int) -> list[float]:
        """From the scheduler's own sigmas, whose last before 0 is near it however few the steps: not an even 1 / num_steps."""
        scheduler = deepcopy(self.pipe.scheduler)
        scheduler.set_timesteps(num_steps, mu=self.mu(num_steps))  # mu is for a scheduler that shifts dynamically
        return scheduler.sigmas.tolist()

    def forward(self, x: Tensor, t: Tensor, cond: SD3Cond) -> Tensor:
        return self.transformer(
            hidden_states=x,
            timestep=t * self.pipe.scheduler.config.num_train_timesteps,
            encoder_hidden_states=cond.text,
            pooled_projections=cond.pooled,
            return_dict=False,
        )[0]

    def to_image(self, x: Tensor) -> Tensor:
        x = x / self.vae.config.scaling_factor + self.vae.config.shift_factor
        return self.vae.decode(x.to(self.vae.dtype), return_dict=False)[0]
