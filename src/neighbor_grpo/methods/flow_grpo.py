"""Flow-GRPO (arXiv 2505.05470): independent noise, every transition an SDE step.

    g(t) = a·sqrt(t / (1 - t)),   A = (r - mean of the group) / std of all rewards of the iteration

Published: N = 10 and a = 0.7 (FLUX: 6 and 0.9), G = 24, all transitions but the last trained, two optimizer steps per
rollout, a LoRA at a rate of 3e-4.  A group costs G·N forwards and G·(N - 1) forward-backwards.  sde: cps makes it
Flow-CPS (arXiv 2509.05952).
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic.dataclasses import dataclass

from neighbor_grpo.errors import STRICT
from neighbor_grpo.flow.solvers import Velocity
from neighbor_grpo.flow.streams import Iteration
from neighbor_grpo.methods.fields import AdvantageStd, GroupSize, NumSteps, Updates
from neighbor_grpo.methods.gaussian import Chains
from neighbor_grpo.methods.tree import Noise, Tree, diffuse, grow


@dataclass(frozen=True, config=STRICT)
class FlowGRPO(Chains):
    """Implement Flow-GRPO.  Defaults: the published recipe for SD3.5."""

    name: str = "flow_grpo"
    group_size: GroupSize = 24
    num_steps: NumSteps = 10
    updates_per_rollout: Updates = 2
    advantage_std: AdvantageStd = "iteration"

    def rollout(self, velocity: Velocity, noise: Noise, times: Sequence[float], iteration: Iteration) -> Tree:
        """Draw G chains, each from its own noise."""
        chains = diffuse(Tree(noise(self.group_size)), velocity, times[:-1], self.kernel, noise, {})
        return grow(chains, velocity, times[-2:], "euler")
