"""What the Neighbor family shares: a group's members are the choices of one state, its anchor (arXiv 2511.16955).

    log pi_theta(i) = log_softmax_i( -||y_i - x^theta||^2 / tau ),   x^theta the Euler step of v_theta from the anchor (Eq. 8)

    clip   J = sum_i min(A_i·rho_i, A_i·clip(rho_i, 1 - c, 1 + c))           (Eq. 9-10)
    spo    J = sum_i A_i·rho_i - |A_i|/(2c)·(rho_i - 1)^2, highest at rho_i = 1 ± c: a spring instead of a wall.
           Rounding of rho pulls on it too, so c must be well above it: 0.03 is FDFO's, 1e-4 is too small.

A is the z-score in the group (Eq. 3), then the quasi-norm (Eq. 11).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from neighbor_grpo.errors import STRICT
from neighbor_grpo.flow.solvers import euler
from neighbor_grpo.methods.advantage import quasi_norm
from neighbor_grpo.methods.fields import Clip, GroupSize, Solver
from neighbor_grpo.methods.policy import SURROGATES, leap_log_prob, ratio_figures
from neighbor_grpo.methods.protocol import Method, Policy
from neighbor_grpo.methods.rows import Decisions
from neighbor_grpo.methods.tree import Step

if TYPE_CHECKING:
    from torch import Tensor

Surrogate = Annotated[
    Literal["clip", "spo"], Field(description="what holds the ratio back: PPO's clip, or SPO's quadratic, which wants c = 0.03")
]
Weighting = Annotated[
    Literal["none", "scale"],
    Field(description="scale: divide each transition's objective by step length times spread of its choices"),
]


@dataclass(frozen=True, config=STRICT)
class Contrast(Method):
    """Hold the surrogate leaping policy and its objective."""

    name: str = ""
    group_size: GroupSize = 12
    solver: Solver = "dpmpp_2m"
    p: Annotated[float, Field(gt=0, le=2, description="quasi-norm of the advantages; 2 = GRPO's")] = 0.8
    clip: Clip = 1e-4
    surrogate: Surrogate = "clip"
    temperature: Annotated[
        Annotated[float, Field(gt=0)] | Literal["dim"], Field(description='tau of the leaping policy; "dim" = D')
    ] = "dim"
    weighting: Weighting = "none"

    def leaf_advantages(self, adv: Tensor) -> Tensor:
        """Return A' (Eq. 11).  [P, G] -> [P, G]"""
        return quasi_norm(adv, self.p)

    def decision(self, step: Step, p: int, j: int, s: float, choices: Tensor, v: Tensor, adv: Tensor) -> Decisions:
        """Return one row: anchor j of group p at a step, whose Euler step by v to time s is compared with `choices`."""
        if self.weighting == "scale":
            spread = choices.std(0, correction=0).square().mean().sqrt().clamp_min(1e-6)
            adv = adv.to(choices.device) / ((step.t - s) * spread)
        return Decisions.row(prompt=p, t=step.t, s=s, std=step.std, x=step.x[p, j], v_old=v, y=choices, adv=adv)

    def loss(self, policy: Policy, rows: Decisions) -> tuple[Tensor, dict[str, Tensor]]:
        """Return -J of each row [R], and the figures of the ratio."""
        velocities = policy(rows.x, rows.t), rows.v_old
        new, old = (leap_log_prob(rows.y, euler(rows.x, v, rows.t, rows.s), self.temperature) for v in velocities)
        objective = SURROGATES[self.surrogate](new, old, rows.adv, self.clip)
        return -objective, ratio_figures(new, old, rows.adv, self.clip)
