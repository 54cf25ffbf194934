"""HunyuanVideo, text to video, through diffusers' HunyuanVideoPipeline.

The model was distilled to take a guidance_scale, 6 in its pipeline; cfg is true classifier-free guidance on top of it.

Text is padded, and the transformer masks the padding in every attention layer: an attention backend must take masks
(torch's own and flash_varlen do, flash and sage do not).
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from neighbor_grpo.models.video import Video


class HunyuanVideoCond(NamedTuple):
    text: Tensor  # [n, L, d]  what LLaMA made of the prompt and the template's end; the template's beginning is dropped
    pooled: Tensor  # [n, d']  CLIP
    mask: Tensor  # [n, L]  bool: a token, not padding, which is at the end


class HunyuanVideo(Video):
    Cond = HunyuanVideoCond
    encoders = ("text_encoder", "text_encoder_2")

    @property
    def patch(self) -> int:
        return self.config.patch_size

    def sequence_length(self) -> int:
        return self.default("max_sequence_length")

    def channels(self) -> int:
        return self.config.in_channels

    def embed(self, prompts: list[str], images: list[Path]) -> HunyuanVideoCond:
        text, pooled, mask = self.pipe.encode_prompt(prompts, device=self.device, max_sequence_length=self.max_sequence_length)
        return HunyuanVideoCond(text, pooled, mask.bool())

    def blank(self, n: int) -> HunyuanVideoCond:
        shape, kind = (n, self.max_sequence_length), {"device": self.device, "dtype": self.dtype}
        return HunyuanVideoCond(
            torch.zeros(*shape, self.config.text_embed_dim, **kind),
            torch.zeros(n, self.config.pooled_projection_dim, **kind),
            torch.ones(shape, dtype=torch.bool),
        )

    def forward(self, x: Tensor, t: Tensor, cond: HunyuanVideoCond) -> Tensor:
        guidance = 1000 * x.new_full((len(x),), self.guidance_scale) if self.config.guidance_embeds else None
        return self.transformer(
            hidden_states=x,
            timestep=t * self.pipe.scheduler.config.num_train_timesteps,
            guidance=guidance,
            encoder_hidden_states=cond.text,
            encoder_attention_mask=cond.mask.to(self.device),
            pooled_projections=cond.pooled,
            return_dict=False,
        )[0]

    def to_image(self, x: Tensor) -> Tensor:
        x = x / self.vae.config.scaling_factor
        return self.vae.decode(x.to(self.vae.dtype), return_dict=False)[0].transpose(1, 2)
