"""What a rollout leaves behind, and what is trained on.

P trees of equal shape (one tree = one prompt's group), N states at t, M at s, R rows, C choices.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from neighbor_grpo.flow.sde import Kernel
from neighbor_grpo.flow.solvers import Velocity, solve

Noise = Callable[[int], Tensor]  # n -> [P, n, *latent], standard normal


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
    """All transitions from noise to data.  evaluations: velocities computed for each prompt, the NFE of the rollout.

    Tree(x) is a tree of roots only; `grow` and `diffuse` lengthen a tree by deterministic and by stochastic transitions.
    """

    root: Tensor  # [P, N, *latent]
    steps: tuple[Step, ...] = ()
    evaluations: int = 0

    @property
    def leaves(self) -> Tensor:
        return self.steps[-1].y if self.steps else self.root  # [P, G, *latent]

    @property
    def nominal_evaluations(self) -> int:
        """The NFE as papers count it: one for every transition, those before the first split for every sample."""
        samples = self.leaves.shape[1]
        transitions = sum(len(step.parent) if len(step.parent) > 1 else samples for step in self.steps)
        return max(transitions, self.evaluations)  # heun needs two for a transition

    def lines(self) -> list[Tensor]:
        """For each step, the row of y that every leaf descends from.  [G] each"""
        at, rows = torch.arange(self.leaves.shape[1]), []
        for step in reversed(self.steps):
            rows.append(at)
            at = step.parent[at]
        return rows[::-1]


def side_by_side(trees: Sequence[Tree]) -> Tree:
    """One tree of all the prompts of several that were rolled out by the same method in the same iteration."""
    if len(trees) == 1:
        return trees[0]
    steps = (
        replace(same[0], **{name: torch.cat([getattr(step, name) for step in same]) for name in ("x", "v", "y")})
        for same in zip(*(tree.steps for tree in trees), strict=True)
    )
    return Tree(torch.cat([tree.root for tree in trees]), tuple(steps), trees[0].evaluations)


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
    prompt: Tensor  # [R]  which group's conditioning; on the CPU, where it is looked up

    def __len__(self) -> int:
        return len(self.t)

    def to(self, device: torch.device) -> "Decisions":
        """On a device, but for the prompts' numbers."""
        moved = {name: getattr(self, name).to(device) for name in self.__dataclass_fields__ if name != "prompt"}
        return replace(self, **moved)

    def split(self, rows: int) -> "list[Decisions]":
        """Micro-batches of at most so many rows."""
        pieces = zip(*(getattr(self, name).split(rows) for name in self.__dataclass_fields__), strict=True)
        return [Decisions(*piece) for piece in pieces]


def rows(picked: Sequence[tuple[float, float, float, Tensor, Tensor, Tensor, Tensor, int]]) -> Decisions:
    """Decisions from rows, each a tuple in the order of the fields of Decisions."""
    *columns, prompt = zip(*picked, strict=True)
    device = columns[3][0].device
    return Decisions(
        *(
            torch.stack(column).to(device) if isinstance(column[0], Tensor) else torch.tensor(column, device=device)
            for column in columns
        ),
        torch.tensor(prompt),
    )


def grow(tree: Tree, velocity: Velocity, times: Sequence[float], solver: str) -> Tree:
    """Lengthen every line along `times` by a deterministic solver, keeping all states and velocities."""
    steps, calls = [], 0
    same = torch.arange(tree.leaves.shape[1])

    def counted(x: Tensor, t: float) -> Tensor:
        nonlocal calls
        calls += x.shape[1]
        return velocity(x, t)

    solve(solver, counted, tree.leaves, times, lambda t, s, x, v, y: steps.append(Step(t, s, 0.0, x, v, y, same)))
    return Tree(tree.root, tree.steps + tuple(steps), tree.evaluations + calls)


def diffuse(
    tree: Tree, velocity: Velocity, times: Sequence[float], kernel: Kernel, noise: Noise, children: Mapping[int, int]
) -> Tree:
    """Lengthen every line along `times` by stochastic transitions  y = mean + std·z.

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
        tree = Tree(tree.root, (*tree.steps, step), tree.evaluations + x.shape[1])
    return tree


def subsets(generator: torch.Generator | Sequence[torch.Generator], groups: int, n: int, k: int) -> Tensor:
    """For every group k of the n indices, drawn without replacement.  [groups, k]

    With one generator per group a group's draw depends on nothing but its own seed, so not on which rank holds it.
    """
    generators = [generator] * groups if isinstance(generator, torch.Generator) else generator
    return torch.stack([torch.randperm(n, generator=g)[:k] for g in generators])
