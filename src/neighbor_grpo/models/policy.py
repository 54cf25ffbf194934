"""The trained model as a method's loss sees it (methods.protocol.Policy)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from neighbor_grpo.flow.path import Time
from neighbor_grpo.models.attach import lora_off
from neighbor_grpo.models.conditioning import Cond
from neighbor_grpo.models.family import Family

Copy = Sequence[Tensor]  # values for all trained weights, in their order


@contextmanager
def exchanged(weights: Sequence[Tensor], values: Copy) -> Iterator[None]:
    """Put `values` in the place of the weights for a while.

    Storages are exchanged, not written to, so a graph that waits for its backward still finds what it saved.
    """
    kept = [weight.data for weight in weights]
    try:  # from here on: a signal may end the work between two weights
        for weight, value in zip(weights, values, strict=True):
            weight.data = value
        yield
    finally:
        for weight, value in zip(weights, kept, strict=True):
            weight.data = value


@contextmanager
def without_cfg(model: Family) -> Iterator[None]:
    """Leave out classifier-free guidance for a while."""
    kept, model.cfg = model.cfg, 1.0
    try:
        yield
    finally:
        model.cfg = kept


class ModelPolicy:
    """Give the velocities of a model for rows whose conditioning is `cond`, and count the rows of its forwards.

    weights are the trained ones; copies hold the values of their lagging copies by name.  guided: with classifier-free
    guidance, if the model has any.
    """

    def __init__(
        self,
        model: Family,
        cond: Cond,
        weights: Sequence[Tensor] = (),
        copies: Mapping[str, Copy] | None = None,
        guided: bool = True,
    ) -> None:
        self.model, self.cond, self.weights, self.copies, self.guided = model, cond, weights, copies or {}, guided
        self.trained = 0  # rows of forwards with a gradient
        self.frozen = 0  # rows of forwards without

    def __call__(self, x: Tensor, t: Time) -> Tensor:
        """Return v_theta(x, t) with its gradient."""
        self.trained += len(x)
        return self._velocity(x, t)

    def reference(self, x: Tensor, t: Time) -> Tensor:
        """Return the velocity of the model before training: a copy's, or without its LoRA, or with the one it started from."""
        if "reference" in self.copies:
            return self.lagging("reference", x, t)
        with lora_off(self.model.transformer):
            return self._frozen(x, t)

    def lagging(self, name: str, x: Tensor, t: Time) -> Tensor:
        """Return the velocity of the lagging copy `name`."""
        with exchanged(self.weights, self.copies[name]):
            return self._frozen(x, t)

    @torch.no_grad()
    def _frozen(self, x: Tensor, t: Time) -> Tensor:
        self.frozen += len(x)
        return self._velocity(x, t)

    def _velocity(self, x: Tensor, t: Time) -> Tensor:
        with nullcontext() if self.guided else without_cfg(self.model):
            return self.model.velocity(x, t, self._cond(len(x)))

    def _cond(self, states: int) -> Cond:
        """Repeat each row's conditioning for its states, which lie side by side."""
        per_row = states // len(self.cond)
        if per_row == 1:
            return self.cond
        return self.cond.map(lambda tensor: tensor.repeat_interleave(per_row, 0))
