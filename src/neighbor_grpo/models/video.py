"""What the families of video models share.

A latent is the VAE's own: [channels, frames, height, width] of its grid, which keeps the first frame and one of every few
after it.
"""

from abc import abstractmethod

from torch import Tensor

from neighbor_grpo.errors import UserError
from neighbor_grpo.models.family import C, Family


class Video(Family[C]):
    """Share frames, shapes and decoding of video models."""

    frames: int

    @abstractmethod
    def channels(self) -> int:
        """Return the channels of a latent."""

    @property
    def vae_factor(self) -> int:
        """Return the pixels along a side of a position of the VAE's grid."""
        return self.pipe.vae_scale_factor_spatial

    def default_sequence_length(self) -> int:
        """Return the pipeline's own length."""
        return self.default("max_sequence_length")

    def default_size(self) -> tuple[int, int]:
        """Return the pipeline's own size."""
        return self.default("height"), self.default("width")

    def frame_count(self, num_frames: int | None) -> int:
        """Return the number of frames.  Raises UserError for a number that the VAE cannot divide."""
        frames, factor = num_frames or self.default("num_frames"), self.pipe.vae_scale_factor_temporal
        if over := (frames - 1) % factor:
            raise UserError(
                f"num_frames must be 1 more than a multiple of {factor} for this VAE, not {frames}: "
                f"set it to {frames - over} or {frames - over + factor}"
            )
        return frames

    def noise_shape(self) -> tuple[int, ...]:
        """Return [channels, frames, rows, columns] of the VAE's grid."""
        frames = (self.frames - 1) // self.pipe.vae_scale_factor_temporal + 1
        rows, columns = (self.patch * tokens for tokens in self.grid)
        return self.channels(), frames, rows, columns

    def to_image(self, x: Tensor) -> Tensor:
        """Decode x to videos [R, T, 3, H, W] in [-1, 1]."""
        return super().to_image(x).transpose(1, 2)

    def vae_mean(self, images: Tensor) -> Tensor:
        """Encode videos [R, T, 3, H, W] in [-1, 1]."""
        return super().vae_mean(images.transpose(1, 2))
