"""The methods: each says how to explore, what to credit, and how likely theta is to choose.

A method's hyper-parameters are its dataclass fields; its defaults are the published recipe.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from neighbor_grpo.methods.neighbor import Neighbor
from neighbor_grpo.solvers import Velocity
from neighbor_grpo.tree import Decisions, Noise, Tree


class Method(Protocol):
    """P prompts at once; the group size is the number of leaves of each tree."""

    group_size: int
    num_steps: int
    num_updates: int  # optimizer steps per rollout

    def rollout(self, velocity: Velocity, noise: Noise, times: Sequence[float], iteration: int) -> Tree:
        """Explore; velocity takes x [P, N, *latent] and a float t.  No gradient is kept."""

    def updates(
        self, tree: Tree, rewards: Tensor, generator: torch.Generator | Sequence[torch.Generator]
    ) -> list[Decisions]:
        """What to train on, one entry per optimizer step, from the rewards [P, G] of the leaves."""

    def loss(self, v: Tensor, decisions: Decisions) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of each row [R] at the velocity v = v_theta(x, t) [R, *latent], and health figures [scalars]."""


METHODS = {"neighbor": Neighbor}
