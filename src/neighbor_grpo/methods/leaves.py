"""Rollouts that keep the finished latents alone, and the one setting that says where the samples of a group part.

    parting noise        x_1^(i) ~ N(0, I), independent: as published
    parting neighbours   x_1^(i) = sqrt(1 - sigma^2)·eps* + sigma·delta^(i), one eps* per prompt (Neighbor GRPO's Eq. 7)
    parting path         one path from one noise, divided into G at transition k (methods.parting); k is uniform over the
                         transitions from part_from to part_to, never the last, and the same for all groups of an iteration

A path that parts at k costs k + 1 forwards for the whole group and N - k - 1 for each sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from neighbor_grpo.errors import STRICT
from neighbor_grpo.flow.sde import KERNELS
from neighbor_grpo.flow.solvers import Velocity
from neighbor_grpo.flow.streams import Iteration
from neighbor_grpo.methods.fields import GroupSize, KernelName, NumSteps, Solver, check_kernel
from neighbor_grpo.methods.parting import neighbours, part, partings, place_of
from neighbor_grpo.methods.protocol import Method
from neighbor_grpo.methods.tree import Noise, Tree, finish

SETTINGS = {"neighbours": ("sigma",), "path": ("part_from", "part_to", "sde", "eta")}  # that a kind of parting has


@dataclass(frozen=True, config=STRICT)
class Leaves(Method):
    """Hold the rollout of a method that needs the finished latents alone."""

    name: str = ""
    group_size: GroupSize = 24
    num_steps: NumSteps = 10
    solver: Solver = "dpmpp_2m"
    parting: Annotated[
        Literal["noise", "neighbours", "path"],
        Field(description="where a group parts: at independent noises, in a neighbourhood of one noise, or on one path"),
    ] = "noise"
    sigma: Annotated[
        float | None, Field(gt=0, le=1, description="parting=neighbours: size of the neighbourhood; null = 0.3")
    ] = None
    part_from: Annotated[
        float | None,
        Field(ge=0, lt=1, description="parting=path: first transition that may part, fraction of the grid; null = 0"),
    ] = None
    part_to: Annotated[
        float | None, Field(gt=0, le=1, description="parting=path: end of these transitions, fraction of the grid; null = 0.4")
    ] = None
    sde: Annotated[KernelName | None, Field(description="parting=path: kernel of the transition; null = flow")] = None
    eta: Annotated[float | None, Field(gt=0, description="parting=path: strength of its noise; null = 0.7")] = None

    @model_validator(mode="after")
    def _check_parting(self) -> Leaves:
        for kind, names in SETTINGS.items():
            for name in names:
                if kind != self.parting and getattr(self, name) is not None:
                    raise ValueError(f"{name} has no effect with parting={self.parting}: leave it out, or set parting={kind}")
        if self.parting == "path":
            check_kernel(self.sde or "flow", self.eta or 0.7)
            partings(self.part_from or 0.0, self.part_to or 0.4, self.num_steps)
        return self

    @property
    def partings(self) -> range:
        """Return the transitions at which a path may part."""
        return partings(self.part_from or 0.0, self.part_to or 0.4, self.num_steps)

    def rollout(self, velocity: Velocity, noise: Noise, times: Sequence[float], iteration: Iteration) -> Tree:
        """Follow the ODE from where the group parts, and keep the finished latents alone."""
        if self.parting == "path":
            k = place_of(self.partings, iteration)
            kernel = partial(KERNELS[self.sde or "flow"], strength=self.eta or 0.7)
            return part(velocity, noise, times, k, self.group_size, kernel, self.solver, finish)
        count = self.group_size
        x = noise(count) if self.parting == "noise" else neighbours(noise, count, self.sigma or 0.3)
        return finish(Tree(x), velocity, times, self.solver)
