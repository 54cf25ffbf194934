"""FLUX.2: dev through diffusers' Flux2Pipeline, the klein models through Flux2KleinPipeline.

dev was distilled to take a guidance_scale; klein base takes cfg; klein was distilled to need neither.
"""

from dataclasses import dataclass

import torch
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch import Tensor

from neighbor_grpo.errors import UserError
from neighbor_grpo.models.conditioning import Cond
from neighbor_grpo.models.family import Family
from neighbor_grpo.models.settings import ModelSettings


@dataclass(frozen=True, eq=False)
class Flux2Cond(Cond):
    """Hold the text."""

    text: Tensor  # [n, L, d]  layers of the text encoder side by side


class Flux2(Family[Flux2Cond]):
    """Adapt FLUX.2.

    A latent is packed: [tokens, channels], a token being 2 x 2 positions of the VAE's grid, standardised by the statistics
    of the VAE's batch norm.
    """

    conditioning = Flux2Cond
    encoders = ("text_encoder",)
    own_sigmas = True

    def configure(self, settings: ModelSettings) -> None:
        """Take over settings, and number the positions."""
        super().configure(settings)
        if self.cfg != 1 and self.pipe.config.get("is_distilled"):
            raise UserError(f"this FLUX.2 klein was distilled to need no guidance: set cfg to 1, not {self.cfg}")
        ids = self.pipe._prepare_latent_ids(torch.empty(1, 1, *self.grid))[0]
        text_ids = self.pipe._prepare_text_ids(torch.empty(1, self.max_sequence_length, 1))[0]
        self.image_ids, self.text_ids = ids.to(self.device), text_ids.to(self.device)

    @property
    def lora_targets(self) -> list[str]:
        """Return the attention projections of both kinds of blocks.

        A single block has one layer before the attention and one after it, whose name is that of a double block's.
        """
        after = [f"single_transformer_blocks.{n}.attn.to_out" for n in range(self.config.num_single_layers)]
        return [*super().lora_targets, "to_qkv_mlp_proj", *after]

    def default_sequence_length(self) -> int:
        """Return the pipeline's own length, as far as the tokenizer allows."""
        tokenizer = getattr(self.pipe.tokenizer, "tokenizer", self.pipe.tokenizer)  # dev has it inside of a processor
        return min(self.default("max_sequence_length"), tokenizer.model_max_length)

    def default_size(self) -> tuple[int, int]:
        """Return the size that the VAE was trained for."""
        return (self.vae.config.sample_size,) * 2

    def embed_text(self, texts: list[str]) -> Flux2Cond:
        """Encode texts by several layers of the text encoder."""
        text, _ = self.pipe.encode_prompt(texts, device=self.device, max_sequence_length=self.max_sequence_length)
        return Flux2Cond(text)

    def blank_text(self, n: int) -> Flux2Cond:
        """Build zeros of the shape of `embed_text`."""
        return Flux2Cond(self.zeros(n, self.max_sequence_length, self.config.joint_attention_dim))

    def noise_shape(self) -> tuple[int, ...]:
        """Return channels and grid of tokens: the pipeline draws its noise by tokens."""
        return self.config.in_channels, *self.grid

    def pack(self, z: Tensor) -> Tensor:
        """Arrange the grid of tokens as a sequence."""
        return self.pipe._pack_latents(z)

    def to_vae(self, x: Tensor) -> Tensor:
        """Undo the standardisation, and divide tokens into positions."""
        mean, std = self._statistics(x.dtype)
        return self.pipe._unpatchify_latents((x * std + mean).mT.unflatten(2, self.grid))

    def from_vae(self, z: Tensor) -> Tensor:
        """Join positions to tokens, and standardise them."""
        mean, std = self._statistics(z.dtype)
        return (self.pack(self.pipe._patchify_latents(z.contiguous())) - mean) / std

    def _statistics(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        norm = self.vae.bn
        return norm.running_mean.to(dtype), (norm.running_var + norm.eps).sqrt().to(dtype)

    def mu(self, num_steps: int) -> float:
        """Return the shift that FLUX.2 takes for a size and a number of steps."""
        return compute_empirical_mu(self.grid[0] * self.grid[1], num_steps)

    def forward(self, x: Tensor, t: Tensor, cond: Flux2Cond) -> Tensor:
        """Compute v in one pass of the transformer."""
        guidance = None if self.guidance_scale is None else torch.full_like(t, self.guidance_scale)
        return self.transformer(
            hidden_states=x,
            timestep=t,
            guidance=guidance,
            img_ids=self.image_ids,
            txt_ids=self.text_ids,
            encoder_hidden_states=cond.text,
            return_dict=False,
        )[0]
