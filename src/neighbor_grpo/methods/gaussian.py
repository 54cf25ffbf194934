"""What the SDE methods share: stochastic transitions y ~ N(mean(v), std^2), scored by PPO's clipped ratio.

    log pi_theta(y | x) = log N(y; mean(v_theta), std^2), averaged over the latent's dimensions
    J = min(A·rho, A·clip(rho, 1 - c, 1 + c)) - kl·||mean - mean_ref||^2 / (2·std^2),   A clamped to ±adv_clip

The last transition is always an Euler step, so that a picture is the predicted data and never carries the noise of a
transition that no method trains (DanceGRPO's rule, given to all).  A decision is one transition that was drawn: C = 1.
"""

from collections.abc import Sequence
from functools import partial

import torch
from pydantic import model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from neighbor_grpo.errors import STRICT
from neighbor_grpo.flow.sde import KERNELS, Kernel
from neighbor_grpo.methods.advantage import z_score
from neighbor_grpo.methods.fields import (
    AdvantageStd,
    AdvClip,
    Clip,
    Eta,
    GroupSize,
    Kl,
    NumSteps,
    Sde,
    TrainSteps,
    Updates,
)
from neighbor_grpo.methods.policy import clipped_fraction, clipped_surrogate, gaussian_log_prob
from neighbor_grpo.methods.tree import Decisions, Tree, rows, subsets


@dataclass(frozen=True, config=STRICT)
class Gaussian:
    """The kernel and the loss."""

    name: str = ""
    group_size: GroupSize = 12
    num_steps: NumSteps = 25
    sde: Sde = "flow"
    eta: Eta = 0.7
    clip: Clip = 1e-4
    adv_clip: AdvClip = 5.0
    kl: Kl = 0.0

    @model_validator(mode="after")
    def _check_kernel(self):
        if self.sde == "cps" and self.eta > 1:
            raise ValueError(f"eta ({self.eta:g}) is a share of the noise where sde is cps: choose at most 1")
        return self

    @property
    def kernel(self) -> Kernel:
        return partial(KERNELS[self.sde], strength=self.eta)

    def loss(self, v: Tensor, decisions: Decisions, v_ref: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        d = decisions
        y, adv = d.y[:, 0], d.adv.clamp(-self.adv_clip, self.adv_clip)
        mean, std = self.kernel(d.x, v, d.t, d.s)
        new = gaussian_log_prob(y, mean, std)[:, None]
        old = gaussian_log_prob(y, *self.kernel(d.x, d.v_old, d.t, d.s))[:, None]
        loss = -clipped_surrogate(new, old, adv, self.clip)
        ratio = (new - old).detach()
        stats = {"log_ratio": ratio.abs().max(), "clipped": clipped_fraction(new.detach(), old, adv, self.clip)}
        if self.kl:
            assert v_ref is not None
            apart = (mean - self.kernel(d.x, v_ref, d.t, d.s)[0]).float().square().flatten(1).mean(1)
            divergence = apart / (2 * std.square())
            loss, stats["kl"] = loss + self.kl * divergence, divergence.detach().mean()
        return loss, stats


@dataclass(frozen=True, config=STRICT)
class Lines(Gaussian):
    """Credit and decisions of the methods whose samples are lines that part once at most."""

    num_train_steps: TrainSteps = None
    updates_per_rollout: Updates = 1
    advantage_std: AdvantageStd = "group"

    @property
    def stochastic(self) -> int:
        """How many transitions of a line are stochastic: all but the last, where a method does not say otherwise."""
        return self.num_steps - 1

    @model_validator(mode="after")
    def _check_lines(self):
        if (self.num_train_steps or 0) > self.stochastic:
            raise ValueError(
                f"num_train_steps (K = {self.num_train_steps}) exceeds the {self.stochastic} stochastic transitions"
            )
        if self.group_size % self.updates_per_rollout:
            raise ValueError(f"updates_per_rollout ({self.updates_per_rollout}) must divide group_size (G = {self.group_size})")
        return self

    def credit(self, tree: Tree, rewards: Tensor, pool: Tensor) -> Tensor:
        """Advantages of the leaves.  [P, G] -> [P, G]"""
        return z_score(rewards, pool if self.advantage_std == "iteration" else None)

    def updates(
        self, tree: Tree, adv: Tensor, generator: torch.Generator | Sequence[torch.Generator], iteration: int
    ) -> list[Decisions]:
        """Each sample trains in one optimizer step, with K of its stochastic transitions, drawn for it alone."""
        groups, size = adv.shape
        lines = tree.lines()
        stochastic = [k for k, step in enumerate(tree.steps) if step.std > 0]
        members = subsets(generator, groups, size, size)  # [P, G], shuffled
        drawn = [subsets(generator, groups, len(stochastic), self.num_train_steps or len(stochastic)) for _ in range(size)]
        return [
            rows(
                [
                    transition(tree, stochastic[k], p, int(lines[stochastic[k]][i]), adv[p, i])
                    for p in range(groups)
                    for i in share[p].tolist()
                    for k in drawn[i][p].tolist()
                ]
            )
            for share in members.chunk(self.updates_per_rollout, dim=1)
        ]


def transition(tree: Tree, k: int, p: int, m: int, adv: Tensor) -> tuple:
    """Transition k into row m of tree p, in the order of the fields of Decisions."""
    step = tree.steps[k]
    n = int(step.parent[m])
    return step.t, step.s, step.std, step.x[p, n], step.v[p, n], step.y[p, m : m + 1], adv.reshape(1), p
