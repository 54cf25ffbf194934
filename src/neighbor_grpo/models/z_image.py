"""Z-Image and Z-Image-Turbo through diffusers' ZImagePipeline.

A latent is [C, H, W] on the VAE's grid.  The transformer takes lists, a picture and a prompt of any length for each row,
and looks from data to noise: its time is 1 - t and its output -v.

The pipeline's guidance_scale is what is added to the plain velocity, v + scale·(v - v_empty): cfg is guidance_scale + 1.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from neighbor_grpo.models.family import Family


class ZImageCond(NamedTuple):
    text: Tensor  # [n, L, d]  zeros after the prompt's last token
    length: Tensor  # [n]  tokens of the prompt


class ZImage(Family):
    Cond = ZImageCond
    encoders = ("text_encoder",)

    def sequence_length(self) -> int:
        return min(self.default("max_sequence_length"), self.pipe.tokenizer.model_max_length)

    def size(self) -> tuple[int, int]:
        return (self.vae.config.sample_size,) * 2

    def longest(self) -> int:
        return min(self.config.axes_lens[1:])

    def embed(self, prompts: list[str], images: list[Path]) -> ZImageCond:
        text, _ = self.pipe.encode_prompt(
            prompts, device=self.device, do_classifier_free_guidance=False, max_sequence_length=self.max_sequence_length
        )
        padded = [pad(tokens, (0, 0, 0, self.max_sequence_length - len(tokens))) for tokens in text]
        return ZImageCond(torch.stack(padded), torch.tensor([len(tokens) for tokens in text]))

    def blank(self, n: int) -> ZImageCond:
        shape = n, self.max_sequence_length, self.config.cap_feat_dim
        return ZImageCond(torch.zeros(shape, device=self.device, dtype=self.dtype), torch.full((n,), self.max_sequence_length))

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        rows, columns = (self.patch * tokens for tokens in self.grid)
        return torch.randn(n, self.config.in_channels, rows, columns, generator=generator).to(self.device)

    def forward(self, x: Tensor, t: Tensor, cond: ZImageCond) -> Tensor:
        pictures = list(x[:, :, None].unbind())  # [C, 1, H, W] each: a film of one picture
        text = [tokens[:n] for tokens, n in zip(cond.text, cond.length.tolist(), strict=True)]
        return -torch.stack(self.transformer(pictures, 1 - t, text, return_dict=False)[0])[:, :, 0]

    def to_image(self, x: Tensor) -> Tensor:
        x = x / self.vae.config.scaling_factor + self.vae.config.shift_factor
        return self.vae.decode(x.to(self.vae.dtype), return_dict=False)[0]
