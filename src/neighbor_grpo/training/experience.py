"""What an iteration learns from, wherever it comes from: rollouts that are scored, or a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from neighbor_grpo.methods.rows import Rows
from neighbor_grpo.models.family import Cond
from neighbor_grpo.run.groups import Group


@dataclass(frozen=True)
class Experience:
    """Hold the rows of each optimizer step of an iteration, on this rank.

    Every rank has as many steps, and as many rows in each.
    """

    cond: Cond  # [p, ...]  conditioning of this rank's prompts, on the device; `rows.prompt` counts in it
    updates: Sequence[Rows]
    figures: Mapping[str, float]  # keys of metrics.jsonl
    texts: Sequence[str] = ()  # of the prompts, for errors
    group: Group | None = None  # of the first prompt, on the main rank, where its pictures are shown


class Source(Protocol):
    """Make the experience of iterations.  A resumed run asks for the iteration that follows, so nothing may be kept in it."""

    def experience(self, n: int) -> Experience:
        """Return what iteration n learns from."""
