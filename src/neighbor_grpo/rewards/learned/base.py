"""What scorers with weights share: where the weights are, in which precision, and how many pictures they score at once."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Annotated, Any, Generic, Literal, TypeVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from neighbor_grpo.errors import STRICT
from neighbor_grpo.models.devices import pick_device

M = TypeVar("M", bound=nn.Module)

Device = Annotated[str, Field(description="auto, cuda, mps or cpu")]
Dtype = Annotated[Literal["float32", "float16", "bfloat16"], Field(description="of the weights; half precision ties rewards")]
Batch = Annotated[int, Field(ge=1, description="pictures at once")]
Offload = Annotated[bool, Field(description="keep the weights on the CPU between uses")]


class WithWeights(ABC, Generic[M]):
    """Load a model and place it as the fields `device`, `dtype` and `offload` of a scorer say."""

    device: str
    dtype: str
    offload: bool

    @abstractmethod
    def read(self) -> M:
        """Read the model on the CPU.  Raises UserError if weights are missing or belong to another model."""

    @cached_property
    def model(self) -> M:
        """Return the model, loaded at the first use."""
        model = self.read().to(getattr(torch, self.dtype)).eval().requires_grad_(False)
        return model if self.offload else model.to(pick_device(self.device))

    def load(self) -> None:
        """Load the model now, so that a mistake shows before a run computes anything."""
        pick_device(self.device)
        _ = self.model

    @contextmanager
    def on_device(self) -> Iterator[tuple[M, torch.device]]:
        """Lend the model and its device; with `offload` the model returns to the CPU afterwards."""
        device = pick_device(self.device)
        model = self.model.to(device)
        try:
            yield model, device
        finally:
            if self.offload:
                model.to("cpu")


@dataclass(frozen=True, config=STRICT)
class Learned(WithWeights[M], ABC):
    """Score pictures by a model; the fields are its settings."""

    weights: str
    device: Device = "auto"
    dtype: Dtype = "float32"
    batch: Batch = 32
    offload: Offload = False

    @abstractmethod
    def score_batch(self, model: M, images: Tensor, prompts: list[str]) -> Tensor:
        """Score at most `batch` pictures [n, 3, H, W] on the model's device.  Returns [n]."""

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        """Score pictures [N, 3, H, W].  Returns [N] float64 on the CPU."""
        with self.on_device() as (model, device):
            batches = [slice(n, n + self.batch) for n in range(0, len(prompts), self.batch)]
            scores = [self.score_batch(model, images[b].to(device), prompts[b]).double().cpu() for b in batches]
        return torch.cat(scores)
