"""Two transformers that share the time: one for high noise, the other for low noise, trained together."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from diffusers import ModelMixin
from torch import Tensor, nn


class Experts(nn.Module):
    """Send each row to the expert of its own timestep: `transformer` from the boundary up, `transformer_2` below.

    Weights are named as in the pipeline, with `transformer.` or `transformer_2.` before each name.  The methods below are
    those of a diffusers transformer that this package calls; each calls both experts.
    """

    def __init__(self, transformer: ModelMixin, transformer_2: ModelMixin, boundary: float) -> None:
        super().__init__()
        self.transformer: ModelMixin = transformer
        self.transformer_2: ModelMixin = transformer_2
        self.boundary = boundary

    @property
    def experts(self) -> tuple[ModelMixin, ModelMixin]:
        """Return both experts, the one for high noise first."""
        return self.transformer, self.transformer_2

    @property
    def dtype(self) -> torch.dtype:
        """Return the data type of the weights."""
        return self.transformer.dtype

    def forward(self, hidden_states: Tensor, timestep: Tensor, **inputs: Any) -> tuple[Tensor]:
        """Compute the output for rows [R, ...], each by its expert.

        On the device "meta", where times have no values, all rows go to the first expert.
        """
        inputs |= {"hidden_states": hidden_states, "timestep": timestep}
        if timestep.is_meta:
            return self.transformer(**inputs)
        high = (timestep.reshape(len(timestep), -1).amax(1) >= self.boundary).cpu()
        rows = [own.nonzero()[:, 0].to(timestep.device) for own in (high, ~high)]
        outputs = [
            expert(**{name: value[own] if isinstance(value, Tensor) else value for name, value in inputs.items()})[0]
            for expert, own in zip(self.experts, rows, strict=True)
            if len(own)
        ]
        return (torch.cat(outputs)[torch.cat(rows).argsort()],)

    def enable_gradient_checkpointing(self, checkpoint: Callable[..., Any] | None = None) -> None:
        """Recompute activations in the backward of both experts."""
        for expert in self.experts:
            expert.enable_gradient_checkpointing(checkpoint)

    def set_attention_backend(self, backend: str) -> None:
        """Choose the attention backend of both experts."""
        for expert in self.experts:
            expert.set_attention_backend(backend)

    def compile_repeated_blocks(self) -> None:
        """Compile the repeated block of both experts."""
        for expert in self.experts:
            expert.compile_repeated_blocks()


Transformer: TypeAlias = ModelMixin | Experts  # what a family trains


def transformers_of(transformer: Transformer) -> dict[str, ModelMixin]:
    """Return the transformers by their names in the pipeline: one, or both experts."""
    return dict(transformer.named_children()) if isinstance(transformer, Experts) else {"transformer": transformer}


def split_weights(transformer: Transformer, weights: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Divide weights, by their names in `transformer`, into those of each transformer of the pipeline."""
    if not isinstance(transformer, Experts):
        return {"transformer": weights}
    return {
        name: {key.removeprefix(f"{name}."): weight for key, weight in weights.items() if key.startswith(f"{name}.")}
        for name in transformers_of(transformer)
    }
