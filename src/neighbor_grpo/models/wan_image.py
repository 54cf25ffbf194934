"""Wan 2.1 and 2.2, picture and text to video, through diffusers' WanImageToVideoPipeline.

Wan 2.2 TI2V-5B keeps the source picture where the first frame is, at time 0, whatever the state has there.  Here that part
of the state is on the straight path to the picture, v = (x - picture) / t, so that a last step from any t to 0 ends on it
(except with heun, which needs v at 0).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from neighbor_grpo.errors import UserError
from neighbor_grpo.files.frames import read_frames
from neighbor_grpo.flow.path import Time, per_row
from neighbor_grpo.models.conditioning import Cond
from neighbor_grpo.models.placement import on_device
from neighbor_grpo.models.settings import ModelSettings
from neighbor_grpo.models.wan import WanCond, WanFamily


@dataclass(frozen=True, eq=False)
class SourceCond(Cond):
    """Hold the source picture in two encodings."""

    clip: Tensor  # [n, L', d']  CLIP's; empty for a model that takes none (all of Wan 2.2)
    latents: Tensor  # [n, C, T, h, w]  fp32, the VAE's: after a mask, a video that starts with the picture; or its frame only


@dataclass(frozen=True, eq=False)
class WanImageCond(WanCond, SourceCond):
    """Hold the text and the source picture."""


class WanImage(WanFamily[WanImageCond]):
    """Adapt Wan, picture and text to video."""

    conditioning = WanImageCond
    encoders = ("text_encoder", "image_encoder")
    source_images = 1

    def configure(self, settings: ModelSettings) -> None:
        """Take over settings.  Raises UserError for a variant of Wan that is not supported."""
        super().configure(settings)
        self.keeps_frame: bool = self.pipe.config.expand_timesteps
        if self.config.pos_embed_seq_len is not None:
            raise UserError("this Wan takes a last picture beside the first one, which is not supported: choose another I2V")
        length = self.default_sequence_length()
        if self.config.added_kv_proj_dim is not None and self.max_sequence_length != length:
            raise UserError(f"this Wan tells text from the picture by its {length} tokens: leave out max_sequence_length")

    def embed_images(self, images: list[Sequence[Path]]) -> SourceCond:
        """Encode the source picture of each prompt, one at a time, because the VAE encodes a whole video."""
        with on_device(self.vae, self.device):
            return SourceCond.concatenate([self._encode_picture(read_frames(path)[0]) for (path,) in images])

    def _encode_picture(self, image: Image.Image) -> SourceCond:
        clip = self.zeros(1, 0, 0)
        if self.config.image_dim is not None:
            clip = self.pipe.encode_image(image, self.device).to(self.dtype)
        first = self.pipe.video_processor.preprocess(image, self.height, self.width).to(self.device, torch.float32)
        _, latents, *_ = self.pipe.prepare_latents(
            first,
            1,
            self.vae.config.z_dim,
            self.height,
            self.width,
            self.frames,
            torch.float32,
            self.device,
            latents=torch.empty(0),
        )
        return SourceCond(clip, latents)

    def blank_images(self, n: int) -> SourceCond:
        """Build zeros of the shapes of `embed_images`."""
        tokens = 0
        if self.config.image_dim is not None:
            clip = self.pipe.image_encoder.config
            tokens = (clip.image_size // clip.patch_size) ** 2 + 1
        channels, frames, rows, columns = self.noise_shape()
        if self.keeps_frame:
            frames = 1
        else:
            channels += self.pipe.vae_scale_factor_temporal  # the mask
        return SourceCond(
            self.zeros(n, tokens, self.config.image_dim or 0),
            torch.zeros(n, channels, frames, rows, columns, device=self.device),
        )

    def velocity(self, x: Tensor, t: Time, cond: WanImageCond) -> Tensor:
        """Compute v; where the first frame is kept, that of the straight path to it."""
        if not self.keeps_frame:
            return super().velocity(x, t, cond)
        if not isinstance(t, Tensor) and t == 0:
            raise UserError("this Wan has no velocity at the end of the path, where heun needs one: choose another solver")
        v = super().velocity(x, t, cond)
        t = torch.as_tensor(t, dtype=v.dtype, device=v.device)
        first = (x[:, :, :1].to(v) - cond.latents.to(v)) / per_row(t, x)
        return torch.cat([first, v[:, :, 1:]], dim=2)

    def forward(self, x: Tensor, t: Tensor, cond: WanImageCond) -> Tensor:
        """Compute v in one pass of the transformer."""
        time = self.timestep(t)
        if self.keeps_frame:
            x = torch.cat([cond.latents, x[:, :, 1:]], dim=2)
            time = time[:, None].repeat(1, x.shape[2] * self.grid[0] * self.grid[1])  # of every token
            time[:, : self.grid[0] * self.grid[1]] = 0
        else:
            x = torch.cat([x, cond.latents], dim=1)
        return self.transformer(
            hidden_states=x,
            timestep=time,
            encoder_hidden_states=cond.text,
            return_dict=False,
            encoder_hidden_states_image=cond.clip if self.config.image_dim is not None else None,
        )[0]
