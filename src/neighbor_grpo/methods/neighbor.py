"""Neighbor GRPO: contrastive ODE policy optimisation (arXiv 2511.16955).

1. Neighbourhood (Eq. 7).  x_1^(i) = sqrt(1 - sigma^2)·eps* + sigma·delta^(i), one eps* per prompt, i = 1 ... G.
2. Rollout.  Deterministic, theta_old, any solver; every state x_t^(i) and velocity is kept.
3. Advantage.  z-score in the group (Eq. 3), then the quasi-norm (Eq. 11).
4. Objective (Eq. 8-10, methods.contrast) of anchors j at transitions t -> s, the choices being the x_s^(i); mean over
   transitions, anchors, prompts.

The cost of a group is G·N forwards and B·K forward-backwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from neighbor_grpo.errors import STRICT
from neighbor_grpo.flow.solvers import Velocity, euler
from neighbor_grpo.flow.streams import Iteration
from neighbor_grpo.methods.contrast import Contrast
from neighbor_grpo.methods.fields import MOST_SAMPLES, MOST_STEPS
from neighbor_grpo.methods.parting import neighbours
from neighbor_grpo.methods.rows import Decisions
from neighbor_grpo.methods.tree import Noise, Tree, grow, subsets

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, config=STRICT)
class Neighbor(Contrast):
    """Implement Neighbor GRPO.  Defaults: the paper's 8-step recipe; its text leaves `temperature` and `reference` open."""

    name: str = "neighbor"
    num_steps: Annotated[int, Field(ge=1, le=MOST_STEPS, description="N, transitions of the rollout")] = 8
    num_train_steps: Annotated[int, Field(ge=1, le=MOST_STEPS, description="K, transitions trained per rollout")] = 4
    num_anchors: Annotated[int, Field(ge=1, le=MOST_SAMPLES, description="B, anchors per group")] = 4
    updates_per_rollout: Annotated[
        int | None,
        Field(ge=1, le=MOST_SAMPLES, description="optimizer steps per rollout, a divisor of B; null = B, one per anchor"),
    ] = None
    sigma: Annotated[float, Field(gt=0, le=1, description="size of the neighbourhood, 1 = independent noise")] = 0.3
    reference: Annotated[
        Literal["stored", "literal"],
        Field(description="where the old policy is: the Euler step of the stored velocity, or the rollout's own next state"),
    ] = "stored"
    distance: Annotated[
        Literal["state", "step_x0", "final_x0"],
        Field(description="compare next states, data predictions at the step, or the prediction with the final x0"),
    ] = "state"
    train_from: Annotated[float, Field(ge=0, lt=1, description="first transition drawn, fraction of the grid")] = 0.0
    train_to: Annotated[float, Field(gt=0, le=1, description="end of the transitions drawn, fraction of the grid")] = 1.0

    @model_validator(mode="after")
    def _check(self) -> Neighbor:
        if self.num_anchors > self.group_size:
            raise ValueError(
                f"num_anchors (B = {self.num_anchors}) exceeds group_size (G = {self.group_size}): anchors are members"
            )
        if self.num_train_steps > len(self.trainable):
            raise ValueError(
                f"num_train_steps (K = {self.num_train_steps}) exceeds the {len(self.trainable)} of num_steps "
                f"(N = {self.num_steps}) transitions between train_from and train_to"
            )
        if self.num_anchors % self.num_updates:
            raise ValueError(f"updates_per_rollout ({self.num_updates}) must divide num_anchors (B = {self.num_anchors})")
        return self

    @property
    def num_updates(self) -> int:
        """Return the number of optimizer steps per rollout."""
        return self.updates_per_rollout or self.num_anchors

    @property
    def trainable(self) -> range:
        """Return the transitions that may be drawn."""
        return range(round(self.train_from * self.num_steps), round(self.train_to * self.num_steps))

    def rollout(self, velocity: Velocity, noise: Noise, times: Sequence[float], iteration: Iteration) -> Tree:
        """Follow the ODE from G neighbouring noises (Eq. 7)."""
        return grow(Tree(neighbours(noise, self.group_size, self.sigma)), velocity, times, self.solver)

    def updates(self, tree: Tree, adv: Tensor, generators: Sequence[Generator], iteration: Iteration) -> list[Decisions]:
        """Draw K transitions and B anchors of each group; each anchor is in one optimizer step (Alg. 1)."""
        adv = self.leaf_advantages(adv)
        drawn = subsets(generators, len(self.trainable), self.num_train_steps) + self.trainable.start  # [P, K]
        anchors = subsets(generators, self.group_size, self.num_anchors)  # [P, B]
        return [
            Decisions.cat(
                [
                    self._decision(tree, p, k, j, adv[p])
                    for p in range(len(adv))
                    for k in drawn[p].tolist()
                    for j in members[p].tolist()
                ]
            )
            for members in anchors.chunk(self.num_updates, dim=1)
        ]

    def _decision(self, tree: Tree, p: int, k: int, j: int, adv: Tensor) -> Decisions:
        """Return one row: anchor j of group p at transition k; all G members are the choices."""
        step = tree.steps[k]
        x, v, s, choices = step.x[p, j], step.v[p, j], step.s, step.y[p]
        if self.distance != "state":  # an Euler step to s = 0 is the data prediction
            s = 0.0
            choices = tree.leaves[p] if self.distance == "final_x0" else euler(step.x[p], step.v[p], step.t, 0.0)
        if self.reference == "literal":  # the velocity whose Euler step ends where the rollout itself went
            v = (x - choices[j]) / (step.t - s)
        return self.decision(step, p, j, s, choices, v, adv)
