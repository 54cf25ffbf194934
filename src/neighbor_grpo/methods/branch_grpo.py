"""BranchGRPO (arXiv 2509.06040): one root per prompt that splits on the way, rewards credited to every transition.

1. Rollout.  SDE steps with DanceGRPO's rate; at the transitions `splits` each state has b successors: b^|splits| leaves.
2. Fusion, upwards.  r(x) = mean over the leaves below x, or  sum_i softmax_i(log p(y_i | x))·r(y_i)  over its successors.
3. Credit.  A transition's advantage is the z-score of its successor's r among the states of the same depth; 0 for one.
4. Pruning, of what is trained.  By depth: transitions given, optionally moving up with time; by width: after the last
   split only the best half of the leaves, the best of each parent's, or the best and worst quarter.  Mix: SDE at the
   splits, Euler elsewhere.

Published: N = 20, splits at 0, 3, 6, 9, G = 16, eta = 0.3, clip 1e-3, an optimizer step for about twelve transitions.
The authors' code draws a split's noise four times as large and scores it as if it were not: split_noise = 4.  It counts the
depths to prune from 1, at the successors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from neighbor_grpo.errors import STRICT
from neighbor_grpo.flow.lazy import torch
from neighbor_grpo.flow.solvers import Velocity
from neighbor_grpo.flow.streams import Iteration
from neighbor_grpo.methods.advantage import z_score
from neighbor_grpo.methods.fields import (
    Branching,
    Clip,
    Depths,
    EdgesPerUpdate,
    Eta,
    Fusion,
    GroupSize,
    Keep,
    NumSteps,
    Sde,
    SlideEvery,
    SplitNoise,
    Splits,
)
from neighbor_grpo.methods.gaussian import Gaussian, Transitions, transition
from neighbor_grpo.methods.tree import Noise, Step, Tree, diffuse, grow, subsets

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, config=STRICT)
class BranchGRPO(Gaussian):
    """Implement BranchGRPO.  Defaults: the published recipe."""

    name: str = "branch_grpo"
    group_size: GroupSize = 16
    num_steps: NumSteps = 20
    sde: Sde = "dance"
    eta: Eta = 0.3
    clip: Clip = 1e-3
    splits: Splits = (0, 3, 6, 9)
    branching: Branching = 2
    split_noise: SplitNoise = 1.0
    fusion: Fusion = "mean"
    mix: bool = False
    prune_depths: Depths = ()
    slide_every: SlideEvery = None
    keep: Keep = "all"
    edges_per_update: EdgesPerUpdate = 12

    @model_validator(mode="after")
    def _check_tree(self) -> BranchGRPO:
        splits = self.splits
        if list(splits) != sorted(set(splits)) or not splits or splits[0] < 0 or splits[-1] >= self.num_steps - 1:
            raise ValueError(
                f"splits must be transitions in rising order from 0 to {self.num_steps - 2} (the last is never stochastic)"
            )
        if self.branching ** len(splits) != self.group_size:
            raise ValueError(
                f"{len(splits)} splits into {self.branching} give {self.branching ** len(splits)} leaves, "
                f"not group_size (G = {self.group_size}): make them agree"
            )
        if self.keep == "extremes" and self.group_size % 4:
            raise ValueError(f"keep: extremes takes quarters of group_size (G = {self.group_size}): make it a multiple of 4")
        if any(not 0 <= k < self.num_steps for k in self.prune_depths):
            raise ValueError(f"prune_depths must lie among the transitions 0 to {self.num_steps - 1}")
        if not all(self.trained(n * (self.slide_every or 1)) for n in range(self.num_steps)):
            raise ValueError("prune_depths leaves no transition to train: name fewer")
        return self

    def trained(self, iteration: int) -> set[int]:
        """Return the transitions that are stochastic and not pruned, after so many iterations."""
        moved = 0
        if self.slide_every and self.prune_depths:
            moved = min(iteration // self.slide_every, max(min(self.prune_depths) - self.splits[-1], 0))
        pruned = {k - moved for k in self.prune_depths}
        return set(self.splits if self.mix else range(self.num_steps - 1)) - pruned

    def rollout(self, velocity: Velocity, noise: Noise, times: Sequence[float], iteration: Iteration) -> Tree:
        """Grow a tree that splits at the transitions `splits`."""
        tree = Tree(noise(1))

        def spread(n: int) -> Tensor:
            return self.split_noise * noise(n)

        for k in range(self.num_steps):
            here, split = times[k : k + 2], k in self.splits
            if k == self.num_steps - 1 or (self.mix and not split):
                tree = grow(tree, velocity, here, "euler")
            else:
                z, successors = (spread, self.branching) if split else (noise, 1)
                tree = diffuse(tree, velocity, here, self.kernel, z, {0: successors})
        return tree

    def credit(self, tree: Tree, rewards: Tensor, pool: Tensor) -> Tensor:
        """Return the advantages of all transitions, step by step: E = sum of M.  [P, G] -> [P, E]"""
        advantages = []
        for step in reversed(tree.steps):
            advantages.append(z_score(rewards, ddof=self.ddof))
            rewards = self._fuse(step, rewards)
        return torch.cat(advantages[::-1], dim=1)

    def leaf_advantages(self, adv: Tensor) -> Tensor:
        """Return the advantages of the last transitions, which end in the leaves.  [P, E] -> [P, G]"""
        return adv[:, -self.group_size :]

    def _fuse(self, step: Step, rewards: Tensor) -> Tensor:
        """Return the rewards of the states at t from those of their scored successors.  [P, M] -> [P, N]"""
        families = rewards.unflatten(1, (step.x.shape[1], -1))  # [P, N, b], siblings lie side by side
        if self.fusion == "mean" or families.shape[2] == 1:
            return families.nanmean(2)
        mean, std = self.kernel(step.x, step.v, step.t, step.s)
        successors = step.y.unflatten(1, families.shape[1:])  # [P, N, b, *latent]
        likely = self.log_prob(successors.flatten(0, 1), mean.flatten(0, 1), std.expand(mean.shape[:2].numel()))
        weight = torch.softmax(likely.view_as(families).where(families.isfinite(), -torch.inf), dim=2)
        return (weight.to(families) * families.nan_to_num()).sum(2)  # NaN where no successor was scored

    def updates(self, tree: Tree, adv: Tensor, generators: Sequence[Generator], iteration: Iteration) -> list[Transitions]:
        """Train every transition that is not pruned in one optimizer step, a random part of each tree's states in each."""
        per_step = adv.split([len(step.parent) for step in tree.steps], dim=1)
        trained, ancestors = sorted(self.trained(iteration.number)), tree.ancestors()
        whole = {k: torch.arange(len(tree.steps[k].parent)).view(tree.steps[k].x.shape[1], -1) for k in trained}
        states = []  # of each tree: (transition, successors) of every state that is trained
        for leaves in self._kept(per_step[-1]):
            after = {k: ancestors[k][leaves, None] for k in trained if k > self.splits[-1]}
            states.append([(k, into) for k in trained for into in after.get(k, whole[k]).tolist()])
        count, transitions = len(states[0]), sum(len(into) for _, into in states[0])
        width = max(len(into) for _, into in states[0])
        weight = {k: count / transitions * factor for k, factor in self.emphasis(tree, trained).items()}
        order = subsets(generators, count, count)
        return [
            Transitions.cat(
                [
                    transition(tree, k, p, into, per_step[k], width, weight[k])
                    for p in range(len(adv))
                    for k, into in (states[p][e] for e in part[p].tolist())
                ]
            )
            for part in order.chunk(-(-transitions // self.edges_per_update), dim=1)
        ]

    def _kept(self, adv: Tensor) -> Tensor:
        """Return the leaves that train after the last split, from the leaves' advantages [P, G]."""
        best = adv.argsort(dim=1, descending=True, stable=True)
        half, quarter = self.group_size // 2, self.group_size // 4
        children = adv.unflatten(1, (-1, self.branching))  # siblings lie side by side
        kept = {
            "all": best,
            "best": best[:, :half],
            "best_child": children.argmax(2) + torch.arange(0, self.group_size, self.branching),
            "extremes": torch.cat([best[:, :quarter], best[:, -quarter:]], dim=1),
        }
        return kept[self.keep].sort(dim=1).values
