"""Stable Diffusion 3 and 3.5 through diffusers' StableDiffusion3Pipeline."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from neighbor_grpo.models.conditioning import Cond
from neighbor_grpo.models.family import Family


@dataclass(frozen=True, eq=False)
class SD3Cond(Cond):
    """Hold the text in two encodings."""

    text: Tensor  # [n, L, d]  both CLIP sequences side by side, then T5's (zeros if T5 was dropped)
    pooled: Tensor  # [n, d']  both CLIPs


class SD3(Family[SD3Cond]):
    """Adapt Stable Diffusion 3.  A latent is the VAE's own: [channels, height, width] of its grid."""

    conditioning = SD3Cond
    encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    optional = ("text_encoder_3", "tokenizer_3")

    @property
    def patch(self) -> int:
        """Return the positions along a side of a token."""
        return self.config.patch_size

    def default_sequence_length(self) -> int:
        """Return the pipeline's own length, as far as the tokenizer allows."""
        default, t5 = self.default("max_sequence_length"), self.pipe.tokenizer_3
        return default if t5 is None else min(default, t5.model_max_length)

    def default_size(self) -> tuple[int, int]:
        """Return the size that the transformer was trained for."""
        return (self.config.sample_size * self.pipe.vae_scale_factor,) * 2

    def max_side(self) -> int | None:
        """Return the tokens of the longest side that has positions."""
        return self.config.pos_embed_max_size

    def embed_text(self, texts: list[str]) -> SD3Cond:
        """Encode texts by two CLIPs and T5."""
        text, _, pooled, _ = self.pipe.encode_prompt(
            texts,
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        return SD3Cond(text, pooled)

    def blank_text(self, n: int) -> SD3Cond:
        """Build zeros of the shapes of `embed_text`."""
        length = self.pipe.tokenizer_max_length + self.max_sequence_length
        return SD3Cond(
            self.zeros(n, length, self.config.joint_attention_dim),
            self.zeros(n, self.config.pooled_projection_dim),
        )

    def schedule(self, num_steps: int) -> dict[str, Any]:
        """Leave the times to the scheduler, whose last before 0 is near 0 for any number of steps, unlike 1 / num_steps."""
        dynamic = {"mu": self.mu(num_steps)} if self.scheduler.config.get("use_dynamic_shifting") else {}
        return {"num_inference_steps": num_steps, **dynamic}

    def forward(self, x: Tensor, t: Tensor, cond: SD3Cond) -> Tensor:
        """Compute v in one pass of the transformer."""
        return self.transformer(
            hidden_states=x,
            timestep=t * self.pipe.scheduler.config.num_train_timesteps,
            encoder_hidden_states=cond.text,
            pooled_projections=cond.pooled,
            return_dict=False,
        )[0]
