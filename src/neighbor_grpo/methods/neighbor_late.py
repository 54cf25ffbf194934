"""Neighbours that part late: Neighbor GRPO's neighbourhood born at a transition of the path instead of at the noise.

1. Parting (methods.parting).  One noise per prompt, a deterministic path to x = x_{t_k}, G successors
   y_i = mean(x, v) + std·z_i  by a kernel, a deterministic path from each.  k is drawn for each iteration, uniformly from a
   range of the grid.
2. One row a group.  Anchor x, which all members share, choices y_i; Eq. 8-11 as in Neighbor GRPO (methods.contrast).  U
   optimizer steps, as many as the published recipe of Neighbor GRPO takes, all on these rows.

With `sde: neighbor` the successors are Eq. 7 on the noise predicted at x.  With sum_i A_i = 0 and rho = 1 the gradient is

    2·G·std^2 / b · D/tau · (mean of the G policy gradients of that SDE transition),   b = -(d mean / d v) / (t - s)

from one forward-backward instead of G (docs/neighbor-late.md derives it); `weighting: scale` divides it by (t - s)·spread.

A group costs k + 1 + G·(N - k - 1) forwards and U forward-backwards.  With N = 8, G = 12, k = 2 ... 6, U = 4 that is 3.4 and
0.33 a sample on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from neighbor_grpo.errors import STRICT
from neighbor_grpo.flow.sde import KERNELS
from neighbor_grpo.flow.solvers import Velocity
from neighbor_grpo.flow.streams import Iteration
from neighbor_grpo.methods.contrast import Contrast, Weighting
from neighbor_grpo.methods.fields import MOST_SAMPLES, Eta, NumSteps, Sde, check_kernel
from neighbor_grpo.methods.parting import part, partings, place_of
from neighbor_grpo.methods.rows import Decisions
from neighbor_grpo.methods.tree import Noise, Tree

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, config=STRICT)
class NeighborLate(Contrast):
    """Implement neighbours that part late.  Defaults: the recipe that was measured on the bundled model."""

    name: str = "neighbor_late"
    num_steps: NumSteps = 8
    part_from: Annotated[float, Field(ge=0, lt=1, description="first transition that may part, fraction of the grid")] = 0.25
    part_to: Annotated[
        float, Field(gt=0, le=1, description="end of the transitions that may part, fraction of the grid; the last never does")
    ] = 0.9
    sde: Sde = "flow"
    eta: Eta = 0.7
    distance: Annotated[
        Literal["state", "final_x0"], Field(description="compare next states, or the data prediction with the final x0")
    ] = "state"
    weighting: Weighting = "scale"
    updates_per_rollout: Annotated[
        int, Field(ge=1, le=MOST_SAMPLES, description="optimizer steps per rollout, each on all rows; the clip ends them")
    ] = 4

    @model_validator(mode="after")
    def _check(self) -> NeighborLate:
        check_kernel(self.sde, self.eta)
        partings(self.part_from, self.part_to, self.num_steps)
        return self

    @property
    def partings(self) -> range:
        """Return the transitions that may part."""
        return partings(self.part_from, self.part_to, self.num_steps)

    def place(self, iteration: Iteration) -> int:
        """Return k, the transition that parts; the same for every group."""
        return place_of(self.partings, iteration)

    def rollout(self, velocity: Velocity, noise: Noise, times: Sequence[float], iteration: Iteration) -> Tree:
        """Follow one path to transition k, part there, and follow each successor to the end."""
        kernel = partial(KERNELS[self.sde], strength=self.eta)
        return part(velocity, noise, times, self.place(iteration), self.group_size, kernel, self.solver)

    def updates(self, tree: Tree, adv: Tensor, generators: Sequence[Generator], iteration: Iteration) -> list[Decisions]:
        """Train the transition that parted: one row a group, the same in every optimizer step."""
        adv, step = self.leaf_advantages(adv), tree.steps[self.place(iteration)]
        choices, s = (step.y, step.s) if self.distance == "state" else (tree.leaves, 0.0)
        rows = Decisions.cat([self.decision(step, p, 0, s, choices[p], step.v[p, 0], adv[p]) for p in range(len(adv))])
        return [rows] * self.updates_per_rollout
