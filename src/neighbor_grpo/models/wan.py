"""Wan 2.1 and 2.2, text to video, through diffusers' WanPipeline.

Wan 2.2 A14B has two experts, and each row goes to the one of its own time (models.experts).  Both are trained, and one cfg
guides both.  Wan 2.2 TI2V-5B takes a time for each token; without a source picture all tokens have the same time, which is
given once for a row.
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from neighbor_grpo.errors import UserError
from neighbor_grpo.models.conditioning import Cond
from neighbor_grpo.models.experts import Experts
from neighbor_grpo.models.latents import ChannelScaled
from neighbor_grpo.models.video import Video


@dataclass(frozen=True, eq=False)
class WanCond(Cond):
    """Hold the text."""

    text: Tensor  # [n, L, d]  zeros after the last token of the prompt


W = TypeVar("W", bound=WanCond)


class WanFamily(ChannelScaled[W], Video[W]):
    """Share text, times and experts of Wan with and without a source picture."""

    def __init__(self, pipe: DiffusionPipeline, device: torch.device, *args: Any) -> None:
        boundary = pipe.config.boundary_ratio
        if pipe.transformer is None or (boundary is not None and pipe.transformer_2 is None):
            raise UserError("this Wan has two experts, and one is missing: load it with both")
        super().__init__(pipe, device, *args)
        if boundary is not None:
            low = pipe.transformer_2.requires_grad_(False).eval().to(device)
            self.transformer = Experts(pipe.transformer, low, boundary * pipe.scheduler.config.num_train_timesteps)

    @property
    def patch(self) -> int:
        """Return the positions along a side of a token."""
        return self.config.patch_size[1]

    def channels(self) -> int:
        """Return the channels of a latent."""
        return self.vae.config.z_dim

    def embed_text(self, texts: list[str]) -> WanCond:
        """Encode texts, padded with zeros."""
        text, _ = self.pipe.encode_prompt(
            texts,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
            device=self.device,
            dtype=self.dtype,
        )
        return WanCond(text)

    def blank_text(self, n: int) -> WanCond:
        """Build zeros of the shape of `embed_text`."""
        return WanCond(self.zeros(n, self.max_sequence_length, self.config.text_dim))

    def schedule(self, num_steps: int) -> dict[str, Any]:
        """Leave the times to the scheduler."""
        return {"num_inference_steps": num_steps}

    def timestep(self, t: Tensor) -> Tensor:
        """Return the timestep that the transformer takes: t·n, n = 1000, rounded down where the scheduler gives integers.

        UniPC's first, a little below n, becomes n - 1.
        """
        n = self.pipe.scheduler.config.num_train_timesteps
        return (t * n).floor().clamp(max=n - 1) if self._integer_timesteps else t * n

    @cached_property
    def _integer_timesteps(self) -> bool:
        scheduler = deepcopy(self.scheduler)
        scheduler.set_timesteps(1)
        return not scheduler.timesteps.is_floating_point()


class Wan(WanFamily[WanCond]):
    """Adapt Wan, text to video."""

    conditioning = WanCond
    encoders = ("text_encoder",)

    def forward(self, x: Tensor, t: Tensor, cond: WanCond) -> Tensor:
        """Compute v in one pass of the transformer."""
        return self.transformer(hidden_states=x, timestep=self.timestep(t), encoder_hidden_states=cond.text, return_dict=False)[
            0
        ]
