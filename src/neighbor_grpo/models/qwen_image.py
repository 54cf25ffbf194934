"""Qwen-Image through diffusers' QwenImagePipeline.

A latent is packed: [tokens, channels], a token being 2 x 2 positions of the VAE's grid.  The VAE is one of videos: a picture
is a single frame.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from neighbor_grpo.models.family import Family


class QwenCond(NamedTuple):
    text: Tensor  # [n, L, d]  what the prompt and the template's end became; its beginning is dropped by the pipeline
    mask: Tensor  # [n, L]  bool: a token, not padding, which is at the end


class QwenImage(Family):
    Cond = QwenCond
    encoders = ("text_encoder",)
    empty = " "  # as Qwen-Image is guided by its makers

    def sequence_length(self) -> int:
        return self.default("max_sequence_length")

    def size(self) -> tuple[int, int]:
        return (self.pipe.default_sample_size * self.pipe.vae_scale_factor,) * 2

    def embed(self, prompts: list[str], images: list[Path]) -> QwenCond:
        text, mask = self.pipe.encode_prompt(prompts, device=self.device, max_sequence_length=self.max_sequence_length)
        mask = torch.ones(text.shape[:2], device=text.device) if mask is None else mask  # None: no padding
        room = self.max_sequence_length - text.shape[1]
        return QwenCond(pad(text, (0, 0, 0, room)), pad(mask.bool(), (0, room)))

    def blank(self, n: int) -> QwenCond:
        shape = n, self.max_sequence_length, self.config.joint_attention_dim
        return QwenCond(torch.zeros(shape, device=self.device, dtype=self.dtype), torch.ones(shape[:2], dtype=torch.bool))

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        channels, rows, columns = self.config.in_channels // 4, 2 * self.grid[0], 2 * self.grid[1]
        x = torch.randn(n, channels, rows, columns, generator=generator)
        return self.pipe._pack_latents(x, n, channels, rows, columns).to(self.device)

    def forward(self, x: Tensor, t: Tensor, cond: QwenCond) -> Tensor:
        length = int(cond.mask.sum(1).max())  # most of L is padding: what no row needs is not computed
        mask = cond.mask[:, :length]
        return self.transformer(
            hidden_states=x,
            timestep=t,
            img_shapes=[[(1, *self.grid)]] * len(x),
            return_dict=False,
            encoder_hidden_states=cond.text[:, :length],
            encoder_hidden_states_mask=None if mask.all() else mask.to(self.device),
        )[0]

    def guide(self, v: Tensor, empty: Tensor) -> Tensor:
        """Each token's v keeps the length it has without guidance."""
        guided = super().guide(v, empty)
        return guided * (v.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))

    def to_image(self, x: Tensor) -> Tensor:
        x = self.pipe._unpack_latents(x, self.height, self.width, self.pipe.vae_scale_factor)  # [R, channels, 1, h, w]
        mean, std = (
            torch.tensor(values, device=x.device).view(1, -1, 1, 1, 1)
            for values in (self.vae.config.latents_mean, self.vae.config.latents_std)
        )
        return self.vae.decode((x * std + mean).to(self.vae.dtype), return_dict=False)[0][:, :, 0]
