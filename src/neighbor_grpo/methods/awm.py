"""Advantage-weighted matching, AWM (arXiv 2509.25050): the flow-matching loss of a finished sample as its log-likelihood.

    l(v) = -(t^k/p)·( (m + 1e-10)^p - 1e-10^p ),   rho = exp( l(v) - l(v_old) )
    loss = max( -A·rho, -A·clip(rho, 1 - c, 1 + c) ) + kl·mean((v - v_ref)^2) + mu·mean((v - v_ema)^2),   |A| <= 1

Weight w = t^k·m^(p - 1).  p = 1/4 and k = 1 as published; p = 1 gives t^k·m, and p = 1/2 twice t^k·sqrt(m).
A = clamp(z, ±5)/5.  What restrains v is the distance to `ema`, a copy of the weights that follows by

    ema <- d·ema + (1 - d)·theta,   d = min(0.001·n, 0.3)  after n iterations

With one optimizer step per rollout rho is 1 in value, and c = 1 cuts nothing.
Published for SD3.5-M: N = 14, T = 6, one time in each of six parts of the grid's places 1 to 11, the same for a micro-batch
(here a group), eps for each sample, G = 24, 72 prompts, mu = 1, kl = 1e-3 (OCR 3e-3, PickScore 1e-4), std of the iteration,
no guidance, a LoRA at a rate of 3e-4.  Its rollout is an SA-Solver with some noise, or with none (PickScore); here it is any
deterministic solver.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from neighbor_grpo.errors import STRICT
from neighbor_grpo.methods.fields import AnyClip, Kl, Lag, NumSteps, Pairs, Shared, Times, TrainFrom, TrainTo
from neighbor_grpo.methods.forward import ForwardProcess, Noised, States, ema_decay, mean_square
from neighbor_grpo.methods.policy import clipped_surrogate, ratio_figures
from neighbor_grpo.methods.protocol import Decay, Policy

if TYPE_CHECKING:
    from torch import Tensor

SMALL = 1e-10  # keeps the gradient of m^p finite at m = 0


@dataclass(frozen=True, config=STRICT)
class AWM(ForwardProcess):
    """Implement AWM.  Defaults: the published recipe for SD3.5."""

    name: str = "awm"
    num_steps: NumSteps = 14
    num_train_steps: Pairs = 6
    train_from: TrainFrom = 0.07
    train_to: TrainTo = 0.86
    times: Times = "stratified"
    shared: Shared = "times"
    kl: Kl = 1e-3
    p: Annotated[float, Field(gt=0, le=1, description="p, power of the matching loss in the likelihood")] = 0.25
    time_power: Annotated[int, Field(ge=0, le=2, description="k, power of t in the likelihood")] = 1
    clip: AnyClip = 1.0
    adv_clip: Annotated[float, Field(gt=0, description="advantages are clamped to this size and divided by it")] = 5.0
    mu: Lag = 1.0

    @property
    def copies(self) -> Mapping[str, Decay]:
        """Return `ema`, where it has a weight, and `old`, where there are several optimizer steps."""
        return {**({"ema": ema_decay} if self.mu else {}), **super().copies}

    def log_likelihood(self, at: States, v: Tensor) -> Tensor:
        """Return l(v) of each state [R]."""
        powered = (at.matching(v) + SMALL).pow(self.p) - SMALL**self.p
        return -at.t.float().pow(self.time_power) / self.p * powered

    def loss(self, policy: Policy, rows: Noised) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each row [R], and the figures of the ratio and of the distances."""
        at, clip = rows.flat(), self.clip or inf
        v = policy(at.x, at.t)
        new, old = (self.log_likelihood(at, u)[:, None] for u in (v, self.old(policy, at, v)))
        adv = (at.adv / self.adv_clip).clamp(-1, 1)[:, None]
        figures = ratio_figures(new, old, adv, clip) | {"matching/error": at.matching(v.detach()).mean()}
        loss = -clipped_surrogate(new, old, adv, clip) + self.anchor(policy, at, v, figures)
        if self.mu:
            lag = mean_square(v - policy.lagging("ema", at.x, at.t))
            loss, figures["matching/ema"] = loss + self.mu * lag, lag.detach().mean()
        return loss, figures
