"""FLUX.1 (dev, schnell and every model of their architecture) through diffusers' FluxPipeline.

dev was distilled to take a guidance_scale.  schnell was distilled to need none, in four steps and with 256 text tokens; it
takes more if max_sequence_length says so.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from neighbor_grpo.models.conditioning import Cond
from neighbor_grpo.models.latents import Packed
from neighbor_grpo.models.settings import ModelSettings


@dataclass(frozen=True, eq=False)
class FluxCond(Cond):
    """Hold the text in two encodings."""

    text: Tensor  # [n, L, d]  T5 sequence
    pooled: Tensor  # [n, d']  CLIP


class Flux(Packed[FluxCond]):
    """Adapt FLUX.1.  A latent is [tokens, channels]."""

    conditioning = FluxCond
    encoders = ("text_encoder", "text_encoder_2")
    own_sigmas = True

    def configure(self, settings: ModelSettings) -> None:
        """Take over settings, and number the positions."""
        super().configure(settings)
        self.image_ids = self.pipe._prepare_latent_image_ids(1, *self.grid, self.device, self.dtype)
        self.text_ids = self.zeros(self.max_sequence_length, 3)

    def default_sequence_length(self) -> int:
        """Return the pipeline's own length, as far as the tokenizer allows."""
        return min(self.default("max_sequence_length"), self.pipe.tokenizer_2.model_max_length)

    def default_size(self) -> tuple[int, int]:
        """Return the size that the VAE was trained for."""
        size = self.vae.config.sample_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def embed_text(self, texts: list[str]) -> FluxCond:
        """Encode texts by T5 and CLIP."""
        text, pooled, _ = self.pipe.encode_prompt(
            texts, prompt_2=None, device=self.device, max_sequence_length=self.max_sequence_length
        )
        return FluxCond(text, pooled)

    def blank_text(self, n: int) -> FluxCond:
        """Build zeros of the shapes of `embed_text`."""
        return FluxCond(
            self.zeros(n, self.max_sequence_length, self.config.joint_attention_dim),
            self.zeros(n, self.config.pooled_projection_dim),
        )

    def forward(self, x: Tensor, t: Tensor, cond: FluxCond) -> Tensor:
        """Compute v in one pass of the transformer."""
        guidance = None if self.guidance_scale is None else torch.full_like(t, self.guidance_scale)
        return self.transformer(
            hidden_states=x,
            timestep=t,
            guidance=guidance,
            img_ids=self.image_ids,
            txt_ids=self.text_ids,
            encoder_hidden_states=cond.text,
            pooled_projections=cond.pooled,
            return_dict=False,
        )[0]
