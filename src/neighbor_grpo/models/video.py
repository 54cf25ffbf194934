"""What the adapters of video models share.

A latent is the VAE's own: [channels, frames, height, width] of its grid, which keeps the first frame and one in some after it.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from neighbor_grpo.errors import UserError
from neighbor_grpo.models.family import Family


class Video(Family):
    @abstractmethod
    def channels(self) -> int:
        """Of a latent."""

    def size(self) -> tuple[int, int]:
        return self.default("height"), self.default("width")

    def spatial(self) -> int:
        return self.pipe.vae_scale_factor_spatial

    def film(self, num_frames: int | None) -> int:
        frames, factor = num_frames or self.default("num_frames"), self.pipe.vae_scale_factor_temporal
        if over := (frames - 1) % factor:
            raise UserError(
                f"num_frames must be 1 more than a multiple of {factor} for this VAE, not {frames}: "
                f"set it to {frames - over} or {frames - over + factor}"
            )
        return frames

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        frames = (self.frames - 1) // self.pipe.vae_scale_factor_temporal + 1
        rows, columns = (self.patch * tokens for tokens in self.grid)
        return torch.randn(n, self.channels(), frames, rows, columns, generator=generator).to(self.device)
