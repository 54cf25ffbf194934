"""What an iteration of a method computes, counted by running the method on latents of one number."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from neighbor_grpo.config import Config
from neighbor_grpo.flow.path import Time, shift_time
from neighbor_grpo.flow.streams import Iteration
from neighbor_grpo.methods.protocol import Method, check_copy
from neighbor_grpo.methods.scouts import drafting
from neighbor_grpo.methods.tree import Tree


@dataclass(frozen=True)
class Work:
    """Count the work of one group in one iteration.  A forward is one row through the model."""

    forwards: int  # of the rollout
    nominal: int  # the same as papers count them, nothing shared
    drafts: int  # pictures that are scored and let go
    rows: int  # that are trained on
    trained: int  # forward-backwards; as many as rows, unless a loss asks for several velocities
    frozen: int  # forwards of reference and lagging copies
    steps: int  # optimizer steps

    @property
    def evaluations(self) -> int:
        """Return the cost in forwards; a forward-backward counts as three."""
        return self.forwards + 3 * self.trained + self.frozen


class CountingPolicy:
    """Count the velocities that a loss asks for; all of them are zero (methods.protocol.Policy)."""

    def __init__(self, copies: Collection[str] = ()) -> None:
        self.copies, self.trained, self.frozen = copies, 0, 0

    def __call__(self, x: Tensor, t: Time) -> Tensor:
        """Count forward-backwards."""
        self.trained += len(x)
        return torch.zeros_like(x)

    def reference(self, x: Tensor, t: Time) -> Tensor:
        """Count forwards of the reference."""
        self.frozen += len(x)
        return torch.zeros_like(x)

    def lagging(self, name: str, x: Tensor, t: Time) -> Tensor:
        """Count forwards of a lagging copy, which the method must declare."""
        check_copy(name, self.copies)
        return self.reference(x, t)


def work_of(config: Config, n: int) -> Work:
    """Return the work of iteration n for one prompt."""
    method, iteration, rng = config.method, Iteration(n, config.seed), torch.Generator().manual_seed(n)

    def noise(k: int) -> Tensor:
        return torch.randn(1, k, 1, generator=rng)

    def rolled(some: Method) -> Tree:
        times = [float(shift_time(1 - k / some.num_steps, 3.0)) for k in range(some.num_steps + 1)]
        return some.rollout(lambda x, t: torch.zeros_like(x), noise, times, iteration)

    tree, scouts = rolled(method), config.scouts
    drafts = rolled(drafting(method, scouts.count, scouts.steps)) if scouts else None
    rewards = torch.randn(1, method.group_size, generator=rng)
    updates = method.updates(tree, method.credit(tree, rewards, rewards), [rng], iteration)
    policy = CountingPolicy(method.copies)
    for rows in updates:
        method.loss(policy, rows)
    return Work(
        forwards=tree.evaluations + (drafts.evaluations if drafts else 0),
        nominal=tree.nominal_evaluations + (drafts.nominal_evaluations if drafts else 0),
        drafts=scouts.count if scouts else 0,
        rows=sum(map(len, updates)),
        trained=policy.trained,
        frozen=policy.frozen,
        steps=len(updates),
    )
