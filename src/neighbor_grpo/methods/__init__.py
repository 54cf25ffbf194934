"""The methods: each says how to explore, what to credit, and how likely theta is to choose.

A method's hyper-parameters are its dataclass fields; its defaults are the published recipe.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from neighbor_grpo.flow.solvers import Velocity
from neighbor_grpo.methods.branch_grpo import BranchGRPO
from neighbor_grpo.methods.dance_grpo import DanceGRPO
from neighbor_grpo.methods.flow_grpo import FlowGRPO
from neighbor_grpo.methods.mix_grpo import FlowGRPOFast, MixGRPO, MixGRPOFlash, MixGRPOFlashStar
from neighbor_grpo.methods.neighbor import Neighbor
from neighbor_grpo.methods.tree import Decisions, Noise, Tree


class Method(Protocol):
    """P prompts at once; the group size is the number of leaves of each tree."""

    group_size: int
    num_steps: int

    @property
    def kl(self) -> float:
        """Weight of a term that needs v_ref, the velocity without the LoRA, in the loss."""

    def rollout(self, velocity: Velocity, noise: Noise, times: Sequence[float], iteration: int) -> Tree:
        """Explore; velocity takes x [P, N, *latent] and a float t.  No gradient is kept."""

    def credit(self, tree: Tree, rewards: Tensor, pool: Tensor) -> Tensor:
        """Advantages [P, ·] from one reward [P, G] of the leaves; the pool [P', G] is that of all ranks' groups."""

    def updates(
        self, tree: Tree, adv: Tensor, generator: torch.Generator | Sequence[torch.Generator], iteration: int
    ) -> list[Decisions]:
        """What to train on, one entry per optimizer step, from the credit of the tree's prompts."""

    def loss(self, v: Tensor, decisions: Decisions, v_ref: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of each row [R] at the velocity v = v_theta(x, t) [R, *latent], and health figures [scalars]."""


METHODS = {
    "neighbor": Neighbor,
    "flow_grpo": FlowGRPO,
    "flow_grpo_fast": FlowGRPOFast,
    "dance_grpo": DanceGRPO,
    "mix_grpo": MixGRPO,
    "mix_grpo_flash": MixGRPOFlash,
    "mix_grpo_flash_star": MixGRPOFlashStar,
    "branch_grpo": BranchGRPO,
}
