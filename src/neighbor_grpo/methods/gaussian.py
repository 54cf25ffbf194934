"""What the SDE methods share: stochastic transitions y ~ N(mean(v), std^2), scored by PPO's clipped ratio.

    log pi_theta(y | x) = log N(y; mean(v_theta), std^2), averaged over the latent's dimensions
    J = min(A·rho, A·clip(rho, 1 - c, 1 + c)) - kl·||mean - mean_ref||^2 / (2·std^2),   A clamped to ±adv_clip

    ratio: ppo     rho = pi_theta / pi_old
           guard   rho = exp( mean(z·(mean - mean_old)) ), z the noise that was drawn;  J / (t - s)
                   (GRPO-Guard, arXiv 2510.22319)
           dppo    J = A·rho without a clip; 0 where ||mean - mean_old||^2 / (2·std^2) is at least c and rho moves further out
                   (Flow-DPPO, arXiv 2606.11025)

    weighting: std   J·std / (mean std of the trained transitions)  (TempFlow-GRPO, arXiv 2508.04324)

Published: guard with c = 2e-6, dppo with c = 1e-5.  `density`, `kl_std` and `reward_std` choose between a formula and what
its authors' code computes (docs/differences.md).

The last transition is always an Euler step, so that a picture is the predicted data and never carries the noise of a
transition that no method trains (DanceGRPO's rule, applied to all).

A row is a state with all of its successors that an optimizer step trains: one forward-backward, since one v scores them all.
The loss is the mean over transitions, whatever the number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass as record
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from neighbor_grpo.errors import STRICT
from neighbor_grpo.flow.lazy import torch
from neighbor_grpo.flow.sde import KERNELS, Kernel
from neighbor_grpo.flow.streams import Iteration
from neighbor_grpo.methods.advantage import z_score
from neighbor_grpo.methods.fields import (
    DDOF,
    RATES,
    AdvantageStd,
    AdvClip,
    Clip,
    Density,
    Eta,
    GroupSize,
    Kl,
    KlStd,
    NumSteps,
    RewardStd,
    Sde,
    TrainSteps,
    Updates,
    check_kernel,
)
from neighbor_grpo.methods.policy import (
    DENSITIES,
    clipped_surrogate,
    gaussian_divergence,
    guarded_log_ratio,
    moves_out,
    ratio_figures,
)
from neighbor_grpo.methods.protocol import Method, Policy
from neighbor_grpo.methods.rows import Decisions
from neighbor_grpo.methods.tree import Tree, subsets

if TYPE_CHECKING:
    from torch import Generator, Tensor


@record(frozen=True)
class Transitions(Decisions):
    """Hold stochastic transitions; the choices of a row are successors of its state.

    A row with fewer than C repeats its first, with weight 0.
    """

    weight: Tensor  # [R, C]  of a choice in the loss, which is the mean over rows


@dataclass(frozen=True, config=STRICT)
class Gaussian(Method):
    """Hold the kernel and the loss of an SDE method."""

    name: str = ""
    group_size: GroupSize = 12
    num_steps: NumSteps = 25
    sde: Sde = "flow"
    eta: Eta = 0.7
    ratio: Annotated[
        Literal["ppo", "guard", "dppo"],
        Field(description="ppo: clipped; guard: normalised, then clipped; dppo: clip bounds the divergence, not the ratio"),
    ] = "ppo"
    density: Density = "gaussian"
    clip: Clip = 1e-4
    weighting: Annotated[
        Literal["none", "std"], Field(description="std: multiply each transition's objective by its std over their mean")
    ] = "none"
    reward_std: RewardStd = "population"
    adv_clip: AdvClip = 5.0
    kl: Kl = 0.0
    kl_std: KlStd = "transition"

    @model_validator(mode="after")
    def _check_kernel(self) -> Gaussian:
        check_kernel(self.sde, self.eta)
        if self.kl_std == "rate" and self.sde not in RATES:
            raise ValueError(f"sde={self.sde} has no rate of noise: set kl_std=transition, or sde to one of {', '.join(RATES)}")
        if self.density == "distance" and self.ratio == "guard":
            raise ValueError("density=distance has no effect with ratio=guard, which takes no log-probability: leave it out")
        return self

    @property
    def kernel(self) -> Kernel:
        """Return the stochastic transition (x, v, t, s) -> (mean, std)."""
        return partial(KERNELS[self.sde], strength=self.eta)

    @property
    def ddof(self) -> int:
        """Return what is taken off the divisor of the rewards' std."""
        return DDOF[self.reward_std]

    def log_prob(self, choices: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Return the log-probability of choices [R, C, *latent].  -> [R, C]"""
        return DENSITIES[self.density](choices, mean, std)

    @property
    def needs_reference(self) -> bool:
        """Return whether there is a divergence from the reference."""
        return self.kl > 0

    def loss(self, policy: Policy, rows: Transitions) -> tuple[Tensor, dict[str, Tensor]]:
        """Return -J of each row [R], and the figures of the ratio and of the divergence."""
        x, t, s, y = rows.x, rows.t, rows.s, rows.y
        adv = rows.adv.clamp(-self.adv_clip, self.adv_clip) * rows.weight
        (mean, std), (old_mean, _) = self.kernel(x, policy(x, t), t, s), self.kernel(x, rows.v_old, t, s)
        if self.ratio == "guard":
            ratio, adv = guarded_log_ratio(y, mean, old_mean, std), adv / (t - s).unsqueeze(1)
        else:
            ratio = self.log_prob(y, mean, std) - self.log_prob(y, old_mean, std)
        figures = ratio_figures(ratio, torch.zeros_like(ratio), adv, self.clip)
        if self.ratio == "dppo":
            out = moves_out(ratio, adv, gaussian_divergence(mean, old_mean, std), self.clip)
            loss = -(adv * ratio.exp()).where(~out, 0.0).sum(1)
            figures["ratio/clipped"] = out.sum() / (adv != 0).sum().clamp_min(1)
        else:
            loss = -clipped_surrogate(ratio, torch.zeros_like(ratio), adv, self.clip)
        if self.kl:
            mean_ref, _ = self.kernel(x, policy.reference(x, t), t, s)
            width = std if self.kl_std == "transition" else std / (t - s).sqrt()
            divergence = gaussian_divergence(mean, mean_ref, width) * rows.weight.sum(1)
            loss, figures["kl"] = loss + self.kl * divergence, divergence.detach().mean()
        return loss, figures

    def emphasis(self, tree: Tree, trained: Sequence[int]) -> dict[int, float]:
        """Return what the objective of each trained transition is multiplied by: 1, or its std over their mean."""
        if self.weighting == "none":
            return dict.fromkeys(trained, 1.0)
        mean = sum(tree.steps[k].std for k in trained) / len(trained)
        return {k: tree.steps[k].std / mean for k in trained}


@dataclass(frozen=True, config=STRICT)
class Chains(Gaussian):
    """Hold credit and updates of the methods whose samples are chains: the group splits once at most."""

    num_train_steps: TrainSteps = None
    updates_per_rollout: Updates = 1
    advantage_std: AdvantageStd = "group"

    @property
    def stochastic(self) -> int:
        """Return how many transitions of a chain are stochastic: all except the last, unless a method says otherwise."""
        return self.num_steps - 1

    @model_validator(mode="after")
    def _check_chains(self) -> Chains:
        if (self.num_train_steps or 0) > self.stochastic:
            raise ValueError(
                f"num_train_steps (K = {self.num_train_steps}) exceeds the {self.stochastic} stochastic transitions"
            )
        if self.group_size % self.updates_per_rollout:
            raise ValueError(f"updates_per_rollout ({self.updates_per_rollout}) must divide group_size (G = {self.group_size})")
        return self

    def credit(self, tree: Tree, rewards: Tensor, pool: Tensor) -> Tensor:
        """Return the advantages of the leaves.  [P, G] -> [P, G]"""
        return z_score(rewards, pool if self.advantage_std == "iteration" else None, self.ddof)

    def updates(self, tree: Tree, adv: Tensor, generators: Sequence[Generator], iteration: Iteration) -> list[Transitions]:
        """Train each sample in one optimizer step, on K of its stochastic transitions, drawn for it alone."""
        groups, size = adv.shape
        stochastic = [k for k, step in enumerate(tree.steps) if step.std > 0]
        count = self.num_train_steps or len(stochastic)
        members = subsets(generators, size, size)  # [P, G], shuffled
        drawn = [subsets(generators, len(stochastic), count).tolist() for _ in range(size)]
        # Ranks need equally many rows, so where transitions are drawn for each sample, those of a shared state stay apart.
        shared = [k for k in stochastic if tree.steps[k].x.shape[1] == 1 and count == len(stochastic)]
        updates = []
        for part in members.chunk(self.updates_per_rollout, dim=1):
            width, rows = part.shape[1] if shared else 1, []
            for p in range(groups):
                apart = [(stochastic[j], [i]) for i in part[p].tolist() for j in drawn[i][p] if stochastic[j] not in shared]
                rows += [(p, k, into) for k, into in [*((k, part[p].tolist()) for k in shared), *apart]]
            weight = {k: len(rows) / (part.numel() * count) * factor for k, factor in self.emphasis(tree, stochastic).items()}
            updates.append(Transitions.cat([transition(tree, k, p, into, adv, width, weight[k]) for p, k, into in rows]))
        return updates


def transition(tree: Tree, k: int, p: int, into: list[int], adv: Tensor, width: int, weight: float) -> Transitions:
    """Return one row of `width` choices: transition k of tree p from one state into its successors `into`.

    adv [P, M] are the advantages of that transition's states at s; weight is that of a choice.
    """
    step, missing = tree.steps[k], width - len(into)
    filled, n = into + into[:1] * missing, int(step.parent[into[0]])
    return Transitions.row(
        prompt=p, t=step.t, s=step.s, std=step.std, x=step.x[p, n], v_old=step.v[p, n],
        y=step.y[p, filled], adv=adv[p, filled], weight=torch.tensor([weight] * len(into) + [0.0] * missing),
    )  # fmt: skip
