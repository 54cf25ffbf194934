"""Finite-difference flow optimisation, FDFO (arXiv 2603.12893): pairs of nearby paths, their difference is the direction.

1. Pairs.  One noise for a pair; each of the two exchanges a little of it (Eq. 7 with sqrt(1 - sigma^2) = e^-w), and a little of
   the predicted noise again at every step except the last, so that it stays on the path (flow.sde.churn_sde, strength w).
2. Difference.  For a member and its partner:  dR = (R - R')/2,  d = (x0 - x0')/2,  d^ = d / (mean(d^2) + 1e-6).
3. Objective.  At every state x of the member's path, with the stored velocity v_old and the target v* = v_old - d^:

       rho = exp( mean(d^^2) - mean((v - v*)^2) ),   J = dR·rho - |dR|/(2c)·(rho - 1)^2

At v = v_old the gradient of J in v is -(2/D)·dR·d^: less v is more x0.  Rewards are not normalised.
Published: N = 40 Euler steps, all trained, w = 0.0025, c = 0.03, four optimizer steps, a LoRA at a rate of 3e-5.  A sample
costs N forwards and K forward-backwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass as record
from functools import partial
from math import exp
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from neighbor_grpo.errors import STRICT
from neighbor_grpo.flow.lazy import torch
from neighbor_grpo.flow.sde import churn_sde
from neighbor_grpo.flow.solvers import Velocity
from neighbor_grpo.flow.streams import Iteration
from neighbor_grpo.methods.contrast import Surrogate
from neighbor_grpo.methods.fields import MOST_SAMPLES, MOST_STEPS, Clip, NumSteps, Updates
from neighbor_grpo.methods.policy import SURROGATES, ratio_figures
from neighbor_grpo.methods.protocol import Method, Policy
from neighbor_grpo.methods.rows import Rows
from neighbor_grpo.methods.tree import Noise, Tree, diffuse, grow, subsets

if TYPE_CHECKING:
    from torch import Generator, Tensor


@record(frozen=True)
class Directed(Rows):
    """Hold states, the velocity that was used there, and the direction in x0 that the reward prefers if adv is positive."""

    v_old: Tensor  # [R, *latent]
    direction: Tensor  # [R, *latent]  d^
    adv: Tensor  # [R]


@dataclass(frozen=True, config=STRICT)
class FDFO(Method):
    """Implement FDFO.  Defaults: the published recipe for SD3.5."""

    name: str = "fdfo"
    group_size: Annotated[
        int,
        Field(ge=2, le=MOST_SAMPLES, multiple_of=2, description="G, samples per prompt: pairs, each from a noise of its own"),
    ] = 2
    num_steps: NumSteps = 40
    num_train_steps: Annotated[
        int | None, Field(ge=1, le=MOST_STEPS, description="K, states trained of each sample, at random; null = all")
    ] = None
    churn: Annotated[float, Field(gt=0, description="w, log of the noise that is exchanged each time")] = 0.0025
    churn_at: Annotated[
        Literal["every", "start"], Field(description="every: at the start and after every step; start: at the start only")
    ] = "every"
    updates_per_rollout: Updates = 4
    surrogate: Surrogate = "spo"
    clip: Clip = 0.03

    @model_validator(mode="after")
    def _check(self) -> FDFO:
        if self.trained > self.num_steps:
            raise ValueError(f"num_train_steps (K = {self.trained}) exceeds num_steps (N = {self.num_steps})")
        if self.group_size * self.trained % self.updates_per_rollout:
            raise ValueError(
                f"updates_per_rollout ({self.updates_per_rollout}) must divide the {self.group_size * self.trained} rows of a "
                "group (group_size times num_train_steps)"
            )
        return self

    @property
    def trained(self) -> int:
        """Return K, the states trained of each sample."""
        return self.num_train_steps or self.num_steps

    def rollout(self, velocity: Velocity, noise: Noise, times: Sequence[float], iteration: Iteration) -> Tree:
        """Follow pairs of nearby paths by Euler steps."""
        shared, own, kept = noise(self.group_size // 2), noise(self.group_size), exp(-self.churn)
        tree = Tree(kept * shared.repeat_interleave(2, 1) + (1 - kept**2) ** 0.5 * own)
        if self.churn_at == "every":
            tree = diffuse(tree, velocity, times[:-1], partial(churn_sde, strength=self.churn), noise, {})
            return grow(tree, velocity, times[-2:], "euler")
        return grow(tree, velocity, times, "euler")

    def credit(self, tree: Tree, rewards: Tensor, pool: Tensor) -> Tensor:
        """Return half the difference to the partner's reward, 0 where either has no score.  [P, G] -> [P, G]"""
        return _half_difference(rewards).nan_to_num(0.0).float()

    def updates(self, tree: Tree, adv: Tensor, generators: Sequence[Generator], iteration: Iteration) -> list[Directed]:
        """Train K states of each sample; a group's rows are shuffled over the optimizer steps."""
        difference = _half_difference(tree.leaves)
        direction = difference / (
            difference.float().square().flatten(2).mean(2).view(*adv.shape, *[1] * (difference.ndim - 2)) + 1e-6
        )
        drawn = torch.stack([subsets(generators, self.num_steps, self.trained) for _ in range(self.group_size)], 1)  # [P, G, K]
        count = self.group_size * self.trained
        order = subsets(generators, count, count)  # [P, G·K]
        return [
            Directed.cat(
                [
                    self._row(tree, p, i, int(drawn[p, i, k]), direction, adv)
                    for p in range(len(adv))
                    for i, k in (divmod(n, self.trained) for n in part[p].tolist())
                ]
            )
            for part in order.chunk(self.updates_per_rollout, dim=1)
        ]

    def _row(self, tree: Tree, p: int, i: int, k: int, direction: Tensor, adv: Tensor) -> Directed:
        """Return one row: sample i of prompt p at transition k."""
        step = tree.steps[k]
        return Directed.row(prompt=p, t=step.t, x=step.x[p, i], v_old=step.v[p, i], direction=direction[p, i], adv=adv[p, i])

    def loss(self, policy: Policy, rows: Directed) -> tuple[Tensor, dict[str, Tensor]]:
        """Return -J of each row [R], and the figures of the ratio."""
        d, moved = rows.direction.float(), (policy(rows.x, rows.t) - rows.v_old).float()
        # mean(d^2) - mean((moved + d)^2), without the difference of two large numbers
        ratio = -(moved * (moved + 2 * d)).flatten(1).mean(1, keepdim=True)
        old, adv = torch.zeros_like(ratio), rows.adv.unsqueeze(1)
        return -SURROGATES[self.surrogate](ratio, old, adv, self.clip), ratio_figures(ratio, old, adv, self.clip)


def _half_difference(x: Tensor) -> Tensor:
    """Return (x_i - x_j)/2 for every member i and its partner j.  [P, G, ...]"""
    pairs = x.unflatten(1, (-1, 2))
    return ((pairs - pairs.flip(2)) / 2).flatten(1, 2)
