"""Qwen-Image through diffusers' QwenImagePipeline."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from neighbor_grpo.models.conditioning import Cond
from neighbor_grpo.models.latents import ChannelScaled, Packed


@dataclass(frozen=True, eq=False)
class QwenCond(Cond):
    """Hold the text and its length."""

    text: Tensor  # [n, L, d]  of the prompt and the end of the template; the pipeline drops the template's beginning
    mask: Tensor  # [n, L]  bool: true for a token, false for padding, which is at the end


class QwenImage(ChannelScaled[QwenCond], Packed[QwenCond]):
    """Adapt Qwen-Image.  A latent is [tokens, channels]; the VAE is one of videos, and a picture is a single frame."""

    conditioning = QwenCond
    encoders = ("text_encoder",)
    empty_prompt = " "  # as the authors of Qwen-Image guide it

    def default_sequence_length(self) -> int:
        """Return the pipeline's own length."""
        return self.default("max_sequence_length")

    def default_size(self) -> tuple[int, int]:
        """Return the pipeline's own size."""
        return (self.pipe.default_sample_size * self.pipe.vae_scale_factor,) * 2

    def embed_text(self, texts: list[str]) -> QwenCond:
        """Encode texts, padded to the longest that is allowed."""
        text, mask = self.pipe.encode_prompt(texts, device=self.device, max_sequence_length=self.max_sequence_length)
        mask = torch.ones(text.shape[:2], device=text.device) if mask is None else mask  # None: no padding
        room = self.max_sequence_length - text.shape[1]
        return QwenCond(pad(text, (0, 0, 0, room)), pad(mask.bool(), (0, room)))

    def blank_text(self, n: int) -> QwenCond:
        """Build zeros of the shape of `embed_text`, and a mask without padding."""
        return QwenCond(
            self.zeros(n, self.max_sequence_length, self.config.joint_attention_dim),
            torch.ones(n, self.max_sequence_length, dtype=torch.bool),
        )

    def forward(self, x: Tensor, t: Tensor, cond: QwenCond) -> Tensor:
        """Compute v in one pass of the transformer."""
        length = int(cond.mask.sum(1).max())  # most of L is padding: compute only as much as the longest row needs
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
        """Guide, and give the v of each token the length that it has without guidance."""
        guided = super().guide(v, empty)
        return guided * (v.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))

    def to_image(self, x: Tensor) -> Tensor:
        """Decode x to pictures [R, 3, H, W] in [-1, 1]."""
        return super().to_image(x)[:, :, 0]

    def vae_mean(self, images: Tensor) -> Tensor:
        """Encode pictures [R, 3, H, W] in [-1, 1]."""
        return super().vae_mean(images[:, :, None])
