"""HunyuanVideo, text to video, through diffusers' HunyuanVideoPipeline.

The model was distilled to take a guidance_scale, 6 in its pipeline; cfg is true classifier-free guidance on top of it.

Text is padded, and the transformer masks the padding in every attention layer: an attention backend must take masks
(torch's own and flash_varlen do, flash and sage do not).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neighbor_grpo.models.conditioning import Cond
from neighbor_grpo.models.video import Video


@dataclass(frozen=True, eq=False)
class HunyuanVideoCond(Cond):
    """Hold the text in two encodings."""

    text: Tensor  # [n, L, d]  LLaMA's output for the prompt and the end of the template, without the template's beginning
    pooled: Tensor  # [n, d']  CLIP
    mask: Tensor  # [n, L]  bool: true for a token, false for padding, which is at the end


class HunyuanVideo(Video[HunyuanVideoCond]):
    """Adapt HunyuanVideo."""

    conditioning = HunyuanVideoCond
    encoders = ("text_encoder", "text_encoder_2")

    @property
    def patch(self) -> int:
        """Return the positions along a side of a token."""
        return self.config.patch_size

    def channels(self) -> int:
        """Return the channels of a latent."""
        return self.config.in_channels

    def embed_text(self, texts: list[str]) -> HunyuanVideoCond:
        """Encode texts by LLaMA and CLIP."""
        text, pooled, mask = self.pipe.encode_prompt(texts, device=self.device, max_sequence_length=self.max_sequence_length)
        return HunyuanVideoCond(text, pooled, mask.bool())

    def blank_text(self, n: int) -> HunyuanVideoCond:
        """Build zeros of the shapes of `embed_text`, and a mask without padding."""
        return HunyuanVideoCond(
            self.zeros(n, self.max_sequence_length, self.config.text_embed_dim),
            self.zeros(n, self.config.pooled_projection_dim),
            torch.ones(n, self.max_sequence_length, dtype=torch.bool),
        )

    def schedule(self, num_steps: int) -> dict[str, Any]:
        """Leave out mu, which the pipeline does not give."""
        return {"sigmas": np.linspace(1.0, 0.0, num_steps + 1)[:-1]}

    def forward(self, x: Tensor, t: Tensor, cond: HunyuanVideoCond) -> Tensor:
        """Compute v in one pass of the transformer."""
        guidance = None if self.guidance_scale is None else 1000 * x.new_full((len(x),), self.guidance_scale)
        return self.transformer(
            hidden_states=x,
            timestep=t * self.pipe.scheduler.config.num_train_timesteps,
            guidance=guidance,
            encoder_hidden_states=cond.text,
            encoder_attention_mask=cond.mask.to(self.device),
            pooled_projections=cond.pooled,
            return_dict=False,
        )[0]

    def to_vae(self, x: Tensor) -> Tensor:
        """Undo the VAE's scale; it has no shift."""
        return x / self.vae.config.scaling_factor

    def from_vae(self, z: Tensor) -> Tensor:
        """Apply the VAE's scale."""
        return z * self.vae.config.scaling_factor
