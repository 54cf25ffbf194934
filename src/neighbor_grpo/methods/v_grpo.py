"""V-GRPO (arXiv 2604.23380): GRPO with the normalised flow-matching loss of finished samples as likelihood.

    L(v) = mean(d^2) / sg(max(mean|d|, 1e-5)),   d = x_t - t·v - x0
    rho = exp( mean over the T pairs of L(v_old) - L(v) ),   A' = eta·tanh(A/eta)
    loss = -min( A'·rho, A'·clip(rho, 1 - c, 1 + c) ) + kappa·mean((t·(v - v_old))^2)

Weight w = t / mean|e|, as DiffusionNFT's: with one optimizer step per rollout, kl = 0, and A small beside eta and C, both take
the same step.  The samples of a group share their T pairs, with one time in each of T equal parts of the grid; a row is a
sample with its T states, which its ratio needs together.
Published, stage 1 for SD3.5-M: 40 ODE steps, T = 4, G = 24, 48 prompts, eta = 3, one optimizer step, no clip, kappa = 0,
z-score in the group, no guidance, a LoRA at a rate of 3e-4.  Stages of several optimizer steps add a clip, or kappa = 0.3.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from neighbor_grpo.errors import STRICT
from neighbor_grpo.methods.fields import AdvantageStd, AnyClip, NumSteps, Shared, Solver, Times
from neighbor_grpo.methods.forward import ForwardProcess, Noised, mean_square, normalised
from neighbor_grpo.methods.policy import clipped_surrogate, ratio_figures
from neighbor_grpo.methods.protocol import Policy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, config=STRICT)
class VGRPO(ForwardProcess):
    """Implement V-GRPO.  Defaults: the published recipe for SD3.5, stage 1."""

    row: ClassVar[Literal["state", "sample", "group"]] = "sample"

    name: str = "v_grpo"
    num_steps: NumSteps = 40
    solver: Solver = "euler"
    times: Times = "stratified"
    shared: Shared = "pairs"
    advantage_std: AdvantageStd = "group"
    clip: AnyClip = None
    adv_soft: Annotated[float, Field(gt=0, description="eta, size that advantages approach: eta·tanh(A/eta)")] = 3.0
    kappa: Annotated[float, Field(ge=0, description="weight of the distance to the predictions that drew the samples")] = 0.0

    def loss(self, policy: Policy, rows: Noised) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each row [R], and the figures of the ratio."""
        at, clip = rows.flat(), self.clip or inf
        v = policy(at.x, at.t)
        old = self.old(policy, at, v)

        def of_row(values: Tensor) -> Tensor:  # [R·T] -> [R, 1]
            return values.view(rows.adv.shape).mean(1, keepdim=True)

        new_log, old_log = (-of_row(normalised(at.x0_error(u))) for u in (v, old))
        adv = self.adv_soft * (rows.adv[:, :1] / self.adv_soft).tanh()
        figures = ratio_figures(new_log, old_log, adv, clip) | {"matching/error": at.matching(v.detach()).mean()}
        restraint = self.anchor(policy, at, v, figures)
        if self.kappa:
            restraint = restraint + self.kappa * at.t.float().square() * mean_square(v - old)
        return -clipped_surrogate(new_log, old_log, adv, clip) + of_row(restraint)[:, 0], figures
