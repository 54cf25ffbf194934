"""What a rollout leaves behind: P trees of equal shape, one for each prompt, from noise to data.

N states at t and M at s; a tree's leaves are its group's G samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

from neighbor_grpo.flow.lazy import torch
from neighbor_grpo.flow.sde import Kernel
from neighbor_grpo.flow.solvers import Record, Velocity, solve

if TYPE_CHECKING:
    from torch import Generator, Tensor

Noise: TypeAlias = "Callable[[int], Tensor]"  # n -> [P, n, *latent], standard normal


@dataclass(frozen=True)
class Step:
    """Hold one transition t -> s of P trees."""

    t: float
    s: float
    std: float  # 0 on deterministic steps
    x: Tensor  # [P, N, *latent]  states at t
    v: Tensor  # [P, N, *latent]  velocity of the policy that rolled out
    y: Tensor  # [P, M, *latent]  states at s
    parent: Tensor  # [M]  which x each y came from


@dataclass(frozen=True)
class Tree:
    """Hold all transitions from noise to data.  `evaluations` is the NFE of the rollout: velocities computed for each prompt.

    Tree(x) has roots only; `grow` adds deterministic transitions, `diffuse` stochastic ones, and `finish` lets all of them go:
    its roots are the finished latents.
    """

    root: Tensor  # [P, N, *latent]
    steps: tuple[Step, ...] = ()
    evaluations: int = 0
    times: tuple[float, ...] = ()  # the grid of the transitions that were let go

    @property
    def leaves(self) -> Tensor:
        """Return the finished latents [P, G, *latent]."""
        return self.steps[-1].y if self.steps else self.root

    @property
    def nominal_evaluations(self) -> int:
        """Return the NFE as papers count it: a transition counts once for every sample, also where samples share it."""
        samples = self.leaves.shape[1]
        transitions = sum(len(step.parent) if len(step.parent) > 1 else samples for step in self.steps)
        transitions += samples * max(0, len(self.times) - 1)
        return max(transitions, self.evaluations)  # heun needs two for a transition

    def ancestors(self) -> list[Tensor]:
        """Return for each step which y every leaf descends from.  [G] each"""
        at, indices = torch.arange(self.leaves.shape[1]), []
        for step in reversed(self.steps):
            indices.append(at)
            at = step.parent[at]
        return indices[::-1]


def side_by_side(trees: Sequence[Tree]) -> Tree:
    """Join trees of different prompts that the same method rolled out in the same iteration."""
    if len(trees) == 1:
        return trees[0]
    steps = (
        replace(same[0], **{name: torch.cat([getattr(step, name) for step in same]) for name in ("x", "v", "y")})
        for same in zip(*(tree.steps for tree in trees), strict=True)
    )
    return Tree(torch.cat([tree.root for tree in trees]), tuple(steps), trees[0].evaluations, trees[0].times)


def grow(tree: Tree, velocity: Velocity, times: Sequence[float], solver: str) -> Tree:
    """Extend every leaf along `times` by a deterministic solver, keeping all states and velocities."""
    steps: list[Step] = []
    same = torch.arange(tree.leaves.shape[1])
    _, calls = _follow(tree, velocity, times, solver, lambda t, s, x, v, y: steps.append(Step(t, s, 0.0, x, v, y, same)))
    return replace(tree, steps=tree.steps + tuple(steps), evaluations=tree.evaluations + calls)


def finish(tree: Tree, velocity: Velocity, times: Sequence[float], solver: str) -> Tree:
    """Extend every leaf along `times` by a deterministic solver, keeping the last states alone."""
    x, calls = _follow(tree, velocity, times, solver, None)
    before = (*tree.times[:-1], *(step.t for step in tree.steps))
    return Tree(x, (), tree.evaluations + calls, (*before, *times))


def _follow(tree: Tree, velocity: Velocity, times: Sequence[float], solver: str, record: Record | None) -> tuple[Tensor, int]:
    """Return the last states, and how many velocities of one prompt were computed."""
    calls = 0

    def counted(x: Tensor, t: float) -> Tensor:
        nonlocal calls
        calls += x.shape[1]
        return velocity(x, t)

    x = solve(solver, counted, tree.leaves, times, record)
    return x, calls


def diffuse(
    tree: Tree, velocity: Velocity, times: Sequence[float], kernel: Kernel, noise: Noise, children: Mapping[int, int]
) -> Tree:
    """Extend every leaf along `times` by stochastic transitions  y = mean + std·z.

    At transition k of these, every state has children.get(k, 1) successors, each with its own z; siblings lie side by side.
    A state's velocity is computed once, however many successors it has.
    """
    for k, (t, s) in enumerate(pairwise(times)):
        x = tree.leaves
        v = velocity(x, t)
        mean, std = kernel(x, v, t, s)
        parent = torch.arange(x.shape[1]).repeat_interleave(children.get(k, 1))
        y = mean[:, parent] + float(std) * noise(len(parent))
        step = Step(t, s, float(std), x, v, y, parent)
        tree = replace(tree, steps=(*tree.steps, step), evaluations=tree.evaluations + x.shape[1])
    return tree


def subsets(generators: Sequence[Generator], n: int, k: int) -> Tensor:
    """Draw for every group k of the n indices without replacement.  [groups, k]

    A group's draw depends on its own generator alone, so it is the same on whichever rank the group lies.
    """
    return torch.stack([torch.randperm(n, generator=generator)[:k] for generator in generators])
