"""What one optimizer step trains on: rows, each a state with what its loss needs to know about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, TypeVar

from neighbor_grpo.flow.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, device

Kind = TypeVar("Kind", bound="Rows")


@dataclass(frozen=True)
class Rows:
    """Hold R rows, every field a tensor whose first dimension is R.  A method's own kind of row adds fields.

    A row of several states, such as a pair, has x [R, states, *latent], and they are never split.
    """

    prompt: Tensor  # [R]  which prompt's conditioning; stays on the CPU, where it is looked up
    t: Tensor  # [R]
    x: Tensor  # [R, *latent], or [R, states, *latent]

    @property
    def states(self) -> int:
        """Return the number of states in a row."""
        return 1

    def __len__(self) -> int:
        return len(self.t)

    @classmethod
    def row(cls: type[Kind], **values: float | Tensor) -> Kind:
        """Return one row from its fields by name, numbers and tensors without the first dimension."""
        return cls(**{k: v[None] if isinstance(v, torch.Tensor) else torch.tensor([v]) for k, v in values.items()})

    @classmethod
    def cat(cls: type[Kind], parts: Sequence[Kind]) -> Kind:
        """Join rows; all fields except `prompt` go to the device of the states."""
        device = parts[0].x.device
        columns = {field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)}
        return cls(**{name: column if name == "prompt" else column.to(device) for name, column in columns.items()})

    def to(self: Kind, device: device) -> Kind:
        """Copy to `device`; `prompt` stays on the CPU."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return type(self)(**{name: column if name == "prompt" else column.to(device) for name, column in columns.items()})

    def split(self: Kind, size: int) -> list[Kind]:
        """Cut into micro-batches of at most `size` states, or of one row if a row has more."""
        rows = max(1, size // self.states)
        columns = [getattr(self, field.name).split(rows) for field in fields(self)]
        return [type(self)(*column) for column in zip(*columns, strict=True)]


@dataclass(frozen=True)
class Decisions(Rows):
    """Hold transitions t -> s: at state x the old policy chose among y, and each choice has an advantage.

    C choices a row: 1 for a transition that was drawn, G where the members of a group are compared.
    """

    s: Tensor  # [R]
    std: Tensor  # [R]  0 for a deterministic transition
    v_old: Tensor  # [R, *latent]  velocity of the old policy at x
    y: Tensor  # [R, C, *latent]
    adv: Tensor  # [R, C]
