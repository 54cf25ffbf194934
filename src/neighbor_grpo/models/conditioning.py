"""The conditioning of prompts: what a family's encoders make of texts and source pictures."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Cond:
    """Hold the conditioning of n prompts: one tensor [n, ...] in each field that a family declares."""

    @classmethod
    def of(cls, *parts: "Cond") -> Self:
        """Build a conditioning from the fields of `parts`, for instance of the texts and of the source pictures."""
        return cls(**{name: tensor for part in parts for name, tensor in vars(part).items()})

    @classmethod
    def concatenate(cls, conds: Sequence["Cond"]) -> Self:
        """Join the conditioning of several sets of prompts, in their order."""
        return cls(**{name: torch.cat([vars(cond)[name] for cond in conds]) for name in vars(conds[0])})

    def __len__(self) -> int:
        """Count the prompts."""
        return len(next(iter(self)))

    def __iter__(self) -> Iterator[Tensor]:
        """Iterate over the tensors."""
        return iter(vars(self).values())

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Apply `change` to every tensor."""
        return replace(self, **{name: change(tensor) for name, tensor in vars(self).items()})

    def updated(self, other: "Cond") -> Self:
        """Replace the fields that `other` has by those of `other`."""
        return replace(self, **vars(other))

    def take(self, rows: Tensor) -> Self:
        """Select prompts by their indices."""
        return self.map(lambda tensor: tensor[rows.to(tensor.device)])

    def to(self, device: torch.device) -> Self:
        """Copy to `device` once, so that the steps of a rollout need not; lengths and masks stay on the CPU."""
        return self.map(lambda tensor: tensor.to(device) if tensor.is_floating_point() else tensor.cpu())
