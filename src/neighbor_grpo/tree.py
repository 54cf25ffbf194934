"""What a rollout leaves behind, and what is trained on.

P trees of equal shape (one tree = one prompt's group), N states at t, M at s, R rows, C choices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neighbor_grpo.solvers import Velocity, solve


@dataclass(frozen=True)
class Step:
    """One transition of P trees."""

    t: float
    s: float
    std: float  # 0 on deterministic steps
    x: Tensor  # [P, N, *latent]  states at t
    v: Tensor  # [P, N, *latent]  velocity of the policy that rolled out
    y: Tensor  # [P, M, *latent]  states at s
    parent: Tensor  # [M]  row of x that each y came from


@dataclass(frozen=True)
class Tree:
    """All transitions from noise to data.  evaluations: velocities computed for each prompt, the NFE of the rollout."""

    steps: tuple[Step, ...]
    evaluations: int

    @property
    def leaves(self) -> Tensor:
        return self.steps[-1].y  # [P, G, *latent]


@dataclass(frozen=True)
class Decisions:
    """Rows to train on: at state x these choices y were there, each with an advantage."""

    t: Tensor  # [R]
    s: Tensor  # [R]
    std: Tensor  # [R]
    x: Tensor  # [R, *latent]
    v_old: Tensor  # [R, *latent]  velocity whose step is the old policy's
    y: Tensor  # [R, C, *latent]  choices
    adv: Tensor  # [R, C]
    prompt: Tensor  # [R]  which group's conditioning

    def __len__(self) -> int:
        return len(self.t)

    def split(self, rows: int) -> "list[Decisions]":
        """Micro-batches of at most so many rows."""
        pieces = zip(*(getattr(self, name).split(rows) for name in self.__dataclass_fields__), strict=True)
        return [Decisions(*piece) for piece in pieces]


def grow(velocity: Velocity, noise: Tensor, times: Sequence[float], solver: str) -> Tree:
    """Deterministic lines from noise [P, N, *latent] along `times`, keeping every state and velocity."""
    steps, calls = [], 0
    same = torch.arange(noise.shape[1])

    def counted(x: Tensor, t: float) -> Tensor:
        nonlocal calls
        calls += x.shape[1]
        return velocity(x, t)

    solve(solver, counted, noise, times, lambda t, s, x, v, y: steps.append(Step(t, s, 0.0, x, v, y, same)))
    return Tree(tuple(steps), calls)


def subsets(generator: torch.Generator | Sequence[torch.Generator], groups: int, n: int, k: int) -> Tensor:
    """For every group k of the n indices, drawn without replacement.  [groups, k]

    With one generator per group a group's draw depends on nothing but its own seed, so not on which rank holds it.
    """
    generators = [generator] * groups if isinstance(generator, torch.Generator) else generator
    return torch.stack([torch.randperm(n, generator=g)[:k] for g in generators])


Noise = Callable[[int], Tensor]  # n -> [P, n, *latent], standard normal
