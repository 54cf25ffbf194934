"""What scorers with weights have in common: where the weights come from, where they run, and in what portions."""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from neighbor_grpo.errors import STRICT
from neighbor_grpo.models.registry import pick_device

Device = Annotated[str, Field(description="auto, cuda, mps or cpu")]
Dtype = Annotated[Literal["float32", "float16", "bfloat16"], Field(description="of the weights; half precision ties rewards")]
Batch = Annotated[int, Field(ge=1, description="pictures at once")]
Offload = Annotated[bool, Field(description="keep the weights on the CPU between uses")]


@dataclass(frozen=True, config=STRICT)
class Learned(ABC):
    """A reward whose fields are its settings; the weights are loaded by `load`, or at the first use."""

    weights: str
    device: Device = "auto"
    dtype: Dtype = "float32"
    batch: Batch = 32
    offload: Offload = False

    @abstractmethod
    def read(self) -> nn.Module:
        """The model with its weights, on the CPU.  Raises UserError where they are missing or of another kind."""

    @abstractmethod
    def portion(self, model: nn.Module, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores [n] of at most `batch` pictures [n, 3, H, W] on the model's device."""

    @cached_property
    def model(self) -> nn.Module:
        model = self.read().to(getattr(torch, self.dtype)).eval().requires_grad_(False)
        return model if self.offload else model.to(pick_device(self.device))

    def load(self) -> None:
        """Read the weights now, so that a mistake shows before anything is computed."""
        pick_device(self.device)
        _ = self.model

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        device = pick_device(self.device)
        model = self.model.to(device)
        try:
            return torch.cat(
                [
                    self.portion(model, images[n : n + self.batch].to(device), prompts[n : n + self.batch]).double().cpu()
                    for n in range(0, len(prompts), self.batch)
                ]
            )
        finally:
            if self.offload:
                model.to("cpu")
