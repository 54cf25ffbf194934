"""What forward-process methods share: they noise finished samples again and train there, so no transition is kept.

    x_t = (1 - t)·x0 + t·eps,   u = eps - x0,   e = v - u,   m = mean(e^2)

1. Roll out with any deterministic solver; keep the finished latents x0.
2. Draw T pairs (t, eps) for each sample, t on the grid of the rollout.
3. Ask the model at x_t.  Where v is the velocity that drew the samples, the gradient of a state in v is in all of them

       g = (2/D)·A·w(t, e)·e          A > 0 pulls v towards u, A < 0 pushes it away

They differ in the weight w and in what restrains v elsewhere; each file says both.  mean(·) is over the D scalars of a latent.
The cost of a group is G·N forwards and G·T forward-backwards, and as many forwards as the loss asks for reference and copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass as record
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from neighbor_grpo.errors import STRICT
from neighbor_grpo.flow.lazy import torch
from neighbor_grpo.flow.path import interpolate, per_row, x0_prediction
from neighbor_grpo.flow.streams import Iteration
from neighbor_grpo.methods.advantage import z_score
from neighbor_grpo.methods.fields import AdvantageStd, Kl, Pairs, Shared, Times, TrainFrom, TrainTo, Updates
from neighbor_grpo.methods.leaves import Leaves
from neighbor_grpo.methods.protocol import Decay, Policy
from neighbor_grpo.methods.rows import Rows
from neighbor_grpo.methods.tree import Tree

if TYPE_CHECKING:
    from torch import Generator, Tensor

FLOOR = 1e-5  # least mean error that a loss is divided by


@record(frozen=True)
class Noised(Rows):
    """Hold R rows of S noised samples x = (1 - t)·x0 + t·eps, those that a loss must see together.

    t is [R, S], x is [R, S, *latent].
    """

    x0: Tensor  # [R, S, *latent]
    adv: Tensor  # [R, S]

    @property
    def states(self) -> int:
        """Return S."""
        return self.x.shape[1]

    def flat(self) -> States:
        """Return the R·S states, those of a row side by side."""
        return States(*(column.flatten(0, 1) for column in (self.x, self.t, self.x0, self.adv)))


@record(frozen=True)
class States:
    """Hold noised samples as a model takes them, and compare velocities with what would lead back to x0."""

    x: Tensor  # [R, *latent]
    t: Tensor  # [R]
    x0: Tensor  # [R, *latent]
    adv: Tensor  # [R]

    def x0_error(self, v: Tensor) -> Tensor:
        """Return the error of the predicted data,  x - t·v - x0 = -t·e."""
        return x0_prediction(self.x, v, self.t) - self.x0

    def matching(self, v: Tensor) -> Tensor:
        """Return m = mean(e^2), the flow-matching loss of each state.  [R]"""
        return mean_square(v - (self.x - self.x0) / per_row(self.t, self.x))  # u = (x - x0) / t


def mean_square(x: Tensor) -> Tensor:
    """Return the mean of squares over the latent, in fp32.  [R, *latent] -> [R]"""
    return x.float().square().flatten(1).mean(1)


def normalised(error: Tensor) -> Tensor:
    """Return  mean(d^2) / max(mean|d|, 1e-5)  of errors d, without gradient through the denominator.  [R, *latent] -> [R]

    fp32, which some devices have instead of fp64: over a mean of one sign it agrees with fp64 to about 1e-7.

    >>> normalised(torch.tensor([[3.0, -1.0]]))  # 5 / 2
    tensor([2.5000])
    """
    size = error.detach().float().abs().flatten(1).mean(1)
    return mean_square(error) / size.clamp_min(FLOOR)


def ema_decay(n: int) -> float:
    """Return the share of a copy `ema` that stays after n iterations, as in AWM and DGPO:  d = min(0.001·n, 0.3)."""
    return min(0.001 * n, 0.3)


@dataclass(frozen=True, config=STRICT)
class ForwardProcess(Leaves):
    """Hold credit and rows of the forward-process methods."""

    # What a loss must see together: one state, the T states of a sample, or the G states of a group at one time.
    row: ClassVar[Literal["state", "sample", "group"]] = "state"
    guided: ClassVar[bool] = False  # guidance, if any, belongs to the rollout alone

    num_train_steps: Pairs = 4
    train_from: TrainFrom = 0.0
    train_to: TrainTo = 1.0
    times: Times = "random"
    shared: Shared = "none"
    updates_per_rollout: Updates = 1
    advantage_std: AdvantageStd = "iteration"
    kl: Kl = 0.0

    @model_validator(mode="after")
    def _check_pairs(self) -> ForwardProcess:
        if self.num_train_steps > len(self.trainable):
            raise ValueError(
                f"num_train_steps (T = {self.num_train_steps}) exceeds the {len(self.trainable)} of num_steps "
                f"(N = {self.num_steps}) times between train_from and train_to"
            )
        what, count = {
            "state": ("group_size times num_train_steps", self.group_size * self.num_train_steps),
            "sample": ("group_size", self.group_size),
            "group": ("num_train_steps", self.num_train_steps),
        }[self.row]
        if count % self.updates_per_rollout:
            raise ValueError(f"updates_per_rollout ({self.updates_per_rollout}) must divide {what} ({count})")
        return self

    @property
    def trainable(self) -> range:
        """Return the places in the grid whose times may be drawn."""
        return range(round(self.train_from * self.num_steps), round(self.train_to * self.num_steps))

    @property
    def copies(self) -> Mapping[str, Decay]:
        """Return `old`, the weights that drew the samples, where the trained ones leave them before the next rollout."""
        return {"old": lambda n: 0.0} if self.updates_per_rollout > 1 else {}

    @property
    def needs_reference(self) -> bool:
        """Return whether there is a distance to the reference."""
        return self.kl > 0

    def credit(self, tree: Tree, rewards: Tensor, pool: Tensor) -> Tensor:
        """Return the advantages of the leaves.  [P, G] -> [P, G]"""
        return z_score(rewards, pool if self.advantage_std == "iteration" else None)

    def updates(self, tree: Tree, adv: Tensor, generators: Sequence[Generator], iteration: Iteration) -> list[Noised]:
        """Noise every sample at T times; an optimizer step trains on an equal share of every group's rows."""
        groups = [self._noised(tree, p, adv[p], generator) for p, generator in enumerate(generators)]
        return [Noised.cat(parts) for parts in zip(*groups, strict=True)]

    def _noised(self, tree: Tree, p: int, adv: Tensor, generator: Generator) -> list[Noised]:
        """Return the rows of group p for each optimizer step, drawn from its generator alone."""
        x0 = tree.leaves[p].unsqueeze(1).expand(-1, self.num_train_steps, *tree.leaves.shape[2:])  # [G, T, *latent]
        drawn = [self._times(generator) for _ in range(1 if self.shared != "none" else self.group_size)]
        t = torch.tensor(tree.times).to(x0)[torch.stack(drawn).to(x0.device)].expand(x0.shape[:2])  # [G, T]
        eps = torch.randn(1 if self.shared == "pairs" else self.group_size, *x0.shape[1:], generator=generator)
        noises = eps.to(x0).expand(x0.shape)
        x = interpolate(x0.flatten(0, 1), noises.flatten(0, 1), t.flatten()).view(x0.shape)
        columns = (self._laid(column) for column in (t, x, x0, adv.to(x0.device).unsqueeze(1).expand(x0.shape[:2])))
        steps = zip(*(column.chunk(self.updates_per_rollout) for column in columns), strict=True)
        return [Noised(torch.full((len(column[0]),), p), *column) for column in steps]

    def _times(self, generator: Generator) -> Tensor:
        """Draw T places in the grid.  [T]"""
        places, count = self.trainable, self.num_train_steps
        if self.times == "random":
            return torch.randperm(len(places), generator=generator)[:count] + places.start
        borders = torch.linspace(places.start, places.stop, count + 1, dtype=torch.float64).floor().long()
        return borders[:-1] + (torch.rand(count, generator=generator) * borders.diff()).long()

    def _laid(self, column: Tensor) -> Tensor:
        """Lay a column [G, T, ...] out as rows [R, S, ...]."""
        if self.row == "state":
            return column.flatten(0, 1).unsqueeze(1)
        return column if self.row == "sample" else column.transpose(0, 1)

    def old(self, policy: Policy, at: States, v: Tensor) -> Tensor:
        """Return the velocity that drew the samples: the copy's, or v itself where the weights have not moved since."""
        return policy.lagging("old", at.x, at.t) if "old" in self.copies else v.detach()

    def anchor(self, policy: Policy, at: States, v: Tensor, figures: dict[str, Tensor]) -> Tensor:
        """Return  kl·mean((v - v_ref)^2)  of each state [R], and add its figure."""
        if not self.kl:
            return v.new_zeros(len(v))
        distance = mean_square(v - policy.reference(at.x, at.t))
        figures["matching/reference"] = distance.detach().mean()
        return self.kl * distance
