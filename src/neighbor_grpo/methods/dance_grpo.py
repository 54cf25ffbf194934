"""DanceGRPO (arXiv 2505.07818): one noise for the group, every transition an SDE step of constant rate.

    g(t) = eta,   A = z-score in the group

Published: N = 25, eta = 0.3, G = 12, of each sample a random 60 % of the first N - 1 transitions trained (14 of 24),
three optimizer steps per rollout; the picture is the data predicted at the last state.  A group costs 1 + G·(N - 1)
forwards, its first state being shared, and G·K forward-backwards.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic.dataclasses import dataclass

from neighbor_grpo.errors import STRICT
from neighbor_grpo.flow.solvers import Velocity
from neighbor_grpo.flow.streams import Iteration
from neighbor_grpo.methods.fields import Eta, Sde, TrainSteps, Updates
from neighbor_grpo.methods.gaussian import Chains
from neighbor_grpo.methods.tree import Noise, Tree, diffuse, grow


@dataclass(frozen=True, config=STRICT)
class DanceGRPO(Chains):
    """Implement DanceGRPO.  Defaults: the published recipe."""

    name: str = "dance_grpo"
    num_train_steps: TrainSteps = 14
    updates_per_rollout: Updates = 3
    sde: Sde = "dance"
    eta: Eta = 0.3

    def rollout(self, velocity: Velocity, noise: Noise, times: Sequence[float], iteration: Iteration) -> Tree:
        """Draw G chains from one noise."""
        chains = diffuse(Tree(noise(1)), velocity, times[:-1], self.kernel, noise, {0: self.group_size})
        return grow(chains, velocity, times[-2:], "euler")
