"""Scouts: many cheap drafts of a prompt, of which a few are rolled out again in full (Sol-RL, arXiv 2604.06916).

1. Draft M samples with few transitions, and score them.
2. Choose G of the M: the best half of G and the worst (best_worst), those furthest from the mean (deviation), or any (random).
3. Roll out these G with all transitions, from the same noise.  Only they are scored for credit and trained on.

A rollout draws its noise by calls of `noise`; what the drafts drew is remembered, and the chosen samples' part of it is drawn
again.  So the drafts may have fewer transitions only where all noise is drawn before the first of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from typing import TYPE_CHECKING, Literal, TypeAlias

from neighbor_grpo.errors import UserError
from neighbor_grpo.flow.lazy import torch
from neighbor_grpo.flow.streams import Iteration
from neighbor_grpo.methods.protocol import Method
from neighbor_grpo.methods.tree import Noise, subsets

if TYPE_CHECKING:
    from torch import Generator, Tensor

Selection: TypeAlias = Literal["best_worst", "deviation", "random"]


class Recorded:
    """Draw noise and remember it, one tensor [P, n, *latent] for each call."""

    def __init__(self, noise: Noise) -> None:
        self.noise = noise
        self.drawn: list[Tensor] = []

    def __call__(self, n: int) -> Tensor:
        """Return the noise of n samples."""
        self.drawn.append(self.noise(n))
        return self.drawn[-1]


def drafting(method: Method, count: int, steps: int) -> Method:
    """Return the method with `count` samples and `steps` transitions, for its rollout alone: nothing else is checked."""
    drafts = copy(method)
    for name, value in (("group_size", count), ("num_steps", steps)):
        object.__setattr__(drafts, name, value)
    return drafts


def replay(drawn: Sequence[Tensor], chosen: Tensor) -> Noise:
    """Return the noise that was drawn for the chosen samples, in the same order of calls.  chosen [P, G]

    What a group shared, one state, stays.
    """
    rest: Iterator[Tensor] = iter(drawn)

    def noise(n: int) -> Tensor:
        x = next(rest)
        return x if x.shape[1] == 1 else torch.stack([group[places] for group, places in zip(x, chosen, strict=True)])

    return noise


def choose(scores: Tensor, count: int, how: Selection, generators: Sequence[Generator]) -> Tensor:
    """Return the places of the chosen drafts, in their order.  scores [P, M], of a group's mean 0 -> [P, count]

    >>> choose(torch.tensor([[0.5, -2.0, 0.1, 1.4]]), 2, "best_worst", [])
    tensor([[1, 3]])
    """
    if how == "random":
        return subsets(generators, scores.shape[1], count).sort(1).values
    size = scores.abs() if how == "deviation" else scores
    order = size.argsort(stable=True, dim=1, descending=True)
    best = count if how == "deviation" else (count + 1) // 2
    return torch.cat([order[:, :best], order[:, order.shape[1] - (count - best) :]], 1).sort(1).values


class _Sizes:
    """Follow a rollout on latents of one number: how many samples each call of `noise` draws, and whether any comes late."""

    def __init__(self, method: Method) -> None:
        self.drawn: list[int] = []
        self.moving = self.late = False
        grid = [1 - k / method.num_steps for k in range(method.num_steps + 1)]
        method.rollout(self._velocity, self._noise, grid, Iteration(0))

    def _velocity(self, x: Tensor, t: float) -> Tensor:
        self.moving = True
        return torch.zeros_like(x)

    def _noise(self, n: int) -> Tensor:
        self.drawn.append(n)
        self.late = self.late or self.moving
        return torch.zeros(1, n, 1)


def check_scouts(method: Method, count: int, steps: int) -> None:
    """Raise UserError for a rollout whose samples cannot be drawn again from the noise of drafts."""
    own = _Sizes(method)
    if own.late and steps != method.num_steps:
        raise UserError(
            f"scouts.steps ({steps}): this method draws noise on the way, so a draft of fewer transitions is another sample: "
            f"set scouts.steps={method.num_steps}"
        )
    wanted = [count if n == method.group_size else n for n in own.drawn]
    if _Sizes(drafting(method, count, steps)).drawn != wanted or not set(wanted) <= {1, count}:
        raise UserError("scouts: this method does not draw its samples one by one: leave scouts out, or choose another method")
