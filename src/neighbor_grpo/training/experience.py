"""What an iteration learns from, wherever it comes from: rollouts that are scored, or a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from neighbor_grpo.files.images import strips, to_pil
from neighbor_grpo.methods.rows import Rows
from neighbor_grpo.models.family import Cond


@dataclass(frozen=True)
class Group:
    """Hold pictures [S, 3, H, W] of a prompt, or videos [S, T, 3, H, W], and a caption for each."""

    text: str
    pictures: Tensor  # bytes
    captions: Sequence[str]

    def images(self) -> list[Any]:
        """Return the pictures as PIL's; of a video three frames side by side."""
        pictures = strips(self.pictures[None])[0] if self.pictures.ndim == 5 else self.pictures
        return [to_pil(picture / 255) for picture in pictures]


@dataclass(frozen=True)
class Experience:
    """Hold the rows of each optimizer step of an iteration, on this rank.

    Every rank has as many steps, and as many rows in each.
    """

    cond: Cond  # [p, ...]  conditioning of this rank's prompts, on the device; `rows.prompt` counts in it
    updates: Sequence[Rows]
    figures: Mapping[str, float]  # keys of metrics.jsonl
    texts: Sequence[str] = ()  # of the prompts, for errors
    group: Group | None = None  # pictures that trackers show


class Source(Protocol):
    """Make the experience of iterations.  A resumed run asks for the iteration that follows, so nothing may be kept in it."""

    def experience(self, n: int) -> Experience:
        """Return what iteration n learns from."""
