"""What a method is: how it explores, what it credits, what it trains on, and its loss.

The pipeline calls these members in this order and never asks which method runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

from neighbor_grpo.errors import UserError, shown
from neighbor_grpo.flow.path import Time
from neighbor_grpo.flow.solvers import Velocity
from neighbor_grpo.flow.streams import Iteration
from neighbor_grpo.methods.advantage import z_score
from neighbor_grpo.methods.tree import Noise, Tree

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from neighbor_grpo.methods.rows import Rows

Decay: TypeAlias = "Callable[[int], float]"  # iterations done -> d in [0, 1], the share of a lagging copy that stays


def check_copy(name: str, copies: Iterable[str]) -> None:
    """Raise UserError for a lagging copy that a method uses and does not declare."""
    if name not in copies:
        declared = ", ".join(copies) or "empty"
        raise UserError(f"the method uses a lagging copy {shown(name)} and its `copies` are {declared}: declare it there")


class Policy(Protocol):
    """Give the velocities that a loss may ask for, each computed when it is asked for.

    x holds R states, or k·R with those of one row side by side; t is a float or one time per state.
    """

    def __call__(self, x: Tensor, t: Time) -> Tensor:
        """Return v_theta(x, t), the trained velocity, with its gradient."""

    def reference(self, x: Tensor, t: Time) -> Tensor:
        """Return the velocity of the model before training: without its LoRA, or with that of model.lora.path.  No gradient."""

    def lagging(self, name: str, x: Tensor, t: Time) -> Tensor:
        """Return the velocity of a lagging copy that the method declares in `copies`.  No gradient."""


class Method(ABC):
    """Base of all methods.  P prompts at once; G = `group_size` pictures of each; N = `num_steps` transitions.

    Hyper-parameters are the fields of a frozen pydantic dataclass, and their defaults are the published recipe.
    """

    name: str
    group_size: int
    num_steps: int

    def source(self, parts: Any) -> Any:
        """Return what makes the experience of a run (training.experience.Source), from its parts (training.parts.Parts).

        None: rollouts that are scored.
        """
        return None

    # Whether the loss sees classifier-free guidance, if the model has any (model.cfg); the rollout does.
    guided: ClassVar[bool] = True

    # These three are constants of most methods; where settings decide, a method overrides the property.

    @property
    def copies(self) -> Mapping[str, Decay]:
        """Return the lagging copies of the trained weights, by name.

        After each iteration  copy <- d·copy + (1 - d)·theta,  d = `copies[name](n)` with n iterations done.  They are saved and
        resumed with the run.
        """
        return {}

    @property
    def drawn_by(self) -> str | None:
        """Return the name of the copy whose weights roll out; None: the trained weights."""
        return None

    @property
    def needs_reference(self) -> bool:
        """Return whether the loss asks for `policy.reference`."""
        return False

    @abstractmethod
    def rollout(self, velocity: Velocity, noise: Noise, times: Sequence[float], iteration: Iteration) -> Tree:
        """Return P trees whose leaves are the finished latents.  velocity takes x [P, N, *latent] and a float t."""

    def credit(self, tree: Tree, rewards: Tensor, pool: Tensor) -> Tensor:
        """Return advantages from one reward of the leaves.  rewards [P, G], pool [P', G] of all ranks -> [P, ·]"""
        return z_score(rewards)

    def leaf_advantages(self, adv: Tensor) -> Tensor:
        """Return the advantage of each leaf, before a loss bounds it.  adv: what `credit` gave, combined.  [P, ·] -> [P, G]"""
        return adv

    @abstractmethod
    def updates(self, tree: Tree, adv: Tensor, generators: Sequence[Generator], iteration: Iteration) -> Sequence[Rows]:
        """Return what to train on, one entry per optimizer step.  generators: one per prompt, for all that is drawn."""

    @abstractmethod
    def loss(self, policy: Policy, rows: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each row [R], and figures under the names that they have in metrics.jsonl.

        A figure is a scalar and is averaged over rows, ranks and optimizer steps.  A prefix asks for another rule:
        "max/NAME" is the largest value, "first/NAME" the largest value in the iteration's first optimizer step.
        """


REQUIRED = ("group_size", "num_steps", "rollout", "updates", "loss")
