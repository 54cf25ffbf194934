"""Layouts and scales of latents that several families share."""

import torch
from torch import Tensor

from neighbor_grpo.models.family import C, Family


class Packed(Family[C]):
    """Share the packed layout [tokens, channels], a token being 2 x 2 positions of the VAE's grid."""

    def noise_shape(self) -> tuple[int, ...]:
        """Return the VAE's shape, of which four positions make a token."""
        rows, columns = (2 * tokens for tokens in self.grid)
        return self.config.in_channels // 4, rows, columns

    def pack(self, z: Tensor) -> Tensor:
        """Pack z [R, channels, rows, columns], or with an axis of one frame after the channels."""
        return self.pipe._pack_latents(z.contiguous(), len(z), *self.noise_shape())

    def unpack(self, x: Tensor) -> Tensor:
        """Unpack x [R, tokens, channels] to the shape that the VAE takes."""
        return self.pipe._unpack_latents(x, self.height, self.width, self.pipe.vae_scale_factor)


class ChannelScaled(Family[C]):
    """Share a VAE of videos whose latents are standardised by a mean and a standard deviation of each channel."""

    def to_vae(self, x: Tensor) -> Tensor:
        """Unpack x and undo the standardisation."""
        mean, std = self._statistics(x.device)
        return self.unpack(x) * std + mean

    def from_vae(self, z: Tensor) -> Tensor:
        """Standardise z and pack it."""
        mean, std = self._statistics(z.device)
        return self.pack((z - mean) / std)

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        config = self.vae.config
        mean, std = (torch.tensor(values, device=device) for values in (config.latents_mean, config.latents_std))
        return mean.view(-1, 1, 1, 1), std.view(-1, 1, 1, 1)
