"""MixGRPO (arXiv 2507.21802): SDE steps inside a window that moves over the grid, Euler steps outside.

    transitions [l, l + w): g(t) = a·sqrt(t / (1 - t)), trained;  A = z-score in the group

One noise for the group, so what comes before the window is computed once.  l = 0 ... L, L the place from which the window
ends with the last but one transition.  Where it stands at an iteration:

    progressive   `dwell` iterations at each l, from 0 to L and back to 0
    random        uniform, the same for every group, drawn from the run's seed
    decay         as progressive, the stay falling linearly from `dwell` at 0 to `dwell_min` at L
    exp_decay     as progressive, the stay  ceil( dwell·exp(-0.1·max(0, l - 13)) )
    frozen        l = 0

Flash: the M transitions after the window are replaced by fewer, evenly spaced on the same grid and solved by dpmpp_2m:

    tail_count: transitions   ceil(r·M)
                points        floor(r·(M + 1)) - 1, at least 1: the authors' code counts points, the window's last included

Published: N = 25, w = 4, a = 0.7, G = 12, four optimizer steps per rollout; Flash r = 0.4; Flash* r = 0.2 and frozen.
Flow-GRPO-Fast is the same with Flow-GRPO's other settings: a window of two at a random place in the first half.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from neighbor_grpo.errors import STRICT
from neighbor_grpo.flow.lazy import torch
from neighbor_grpo.flow.solvers import Velocity
from neighbor_grpo.flow.streams import Iteration
from neighbor_grpo.methods.fields import (
    AdvantageStd,
    Dwell,
    GroupSize,
    NumSteps,
    Strategy,
    Tail,
    TailCount,
    TailSolver,
    Updates,
    Window,
    WindowEnd,
)
from neighbor_grpo.methods.gaussian import Chains
from neighbor_grpo.methods.tree import Noise, Tree, diffuse, grow


@dataclass(frozen=True, config=STRICT)
class MixGRPO(Chains):
    """Implement MixGRPO.  Defaults: the published recipe."""

    name: str = "mix_grpo"
    updates_per_rollout: Updates = 4
    window: Window = 4
    window_end: WindowEnd = 1.0
    strategy: Strategy = "progressive"
    dwell: Dwell = 25
    dwell_min: Dwell = 1
    tail: Tail = 1.0
    tail_count: TailCount = "transitions"
    tail_solver: TailSolver = "euler"

    @property
    def stochastic(self) -> int:
        """Return how many transitions of a chain are stochastic."""
        return self.window

    @property
    def last_place(self) -> int:
        """Return L, the largest l."""
        return min(round(self.window_end * self.num_steps), self.num_steps - 1) - self.window

    @model_validator(mode="after")
    def _check_window(self) -> MixGRPO:
        if self.last_place < 0:
            raise ValueError(
                f"window ({self.window}) is longer than the {self.last_place + self.window} transitions it may cover "
                f"of num_steps (N = {self.num_steps}; the last is never stochastic)"
            )
        if self.dwell_min > self.dwell:
            raise ValueError(f"dwell_min ({self.dwell_min}) exceeds dwell ({self.dwell})")
        return self

    def place(self, iteration: Iteration) -> int:
        """Return l, where the window starts."""
        last = self.last_place
        if self.strategy == "frozen":
            return 0
        if self.strategy == "random":
            return int(torch.randint(last + 1, (), generator=iteration.generator()))
        stays = np.full(last + 1, self.dwell)
        if self.strategy == "decay":
            stays = np.linspace(self.dwell, self.dwell_min, last + 1).round().astype(int)
        elif self.strategy == "exp_decay":
            stays = np.ceil(self.dwell * np.exp(-0.1 * np.maximum(0, np.arange(last + 1) - 13))).astype(int)
        ends = stays.cumsum()
        return int(np.searchsorted(ends, iteration.number % ends[-1], side="right"))

    def after(self, end: int) -> int:
        """Return how many transitions follow a window that ends at place `end` of the grid."""
        full = self.num_steps - end
        return ceil(self.tail * full) if self.tail_count == "transitions" else max(int(self.tail * (full + 1)) - 1, 1)

    def rollout(self, velocity: Velocity, noise: Noise, times: Sequence[float], iteration: Iteration) -> Tree:
        """Follow the ODE to the window, split there, and follow the ODE after it."""
        start = self.place(iteration)
        end = start + self.window
        left = self.after(end)
        tail = np.interp(np.linspace(end, self.num_steps, left + 1), np.arange(self.num_steps + 1), times).tolist()
        prefix = grow(Tree(noise(1)), velocity, times[: start + 1], "euler")
        chains = diffuse(prefix, velocity, times[start : end + 1], self.kernel, noise, {0: self.group_size})
        return grow(chains, velocity, tail, self.tail_solver)


@dataclass(frozen=True, config=STRICT)
class MixGRPOFlash(MixGRPO):
    """Implement MixGRPO-Flash: the tail is shortened and solved by dpmpp_2m.  Defaults: the published recipe."""

    name: str = "mix_grpo_flash"
    tail: Tail = 0.4
    tail_solver: TailSolver = "dpmpp_2m"


@dataclass(frozen=True, config=STRICT)
class MixGRPOFlashStar(MixGRPOFlash):
    """Implement MixGRPO-Flash*: a shorter tail and a window that stands at the start.  Defaults: the published recipe."""

    name: str = "mix_grpo_flash_star"
    tail: Tail = 0.2
    strategy: Strategy = "frozen"


@dataclass(frozen=True, config=STRICT)
class FlowGRPOFast(MixGRPO):
    """Implement Flow-GRPO-Fast: a window of two at a random place in the first half.  Defaults: the authors' code."""

    name: str = "flow_grpo_fast"
    group_size: GroupSize = 24
    num_steps: NumSteps = 10
    updates_per_rollout: Updates = 2
    advantage_std: AdvantageStd = "iteration"
    window: Window = 2
    window_end: WindowEnd = 0.5
    strategy: Strategy = "random"
