"""Two transformers that share the time: one for much noise, the other for the rest, trained together."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


class Experts(nn.Module):
    """Each row goes to the expert of its own timestep: `transformer` from the boundary up, `transformer_2` below.

    Weights are named as in the pipeline, `transformer.` or `transformer_2.` before each name, and what the package asks of
    a transformer (see the end of this file) is asked of both.
    """

    def __init__(self, transformer: nn.Module, transformer_2: nn.Module, boundary: float) -> None:
        super().__init__()
        self.transformer, self.transformer_2, self.boundary = transformer, transformer_2, boundary

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.dtype

    def forward(self, hidden_states: Tensor, timestep: Tensor, **inputs) -> tuple[Tensor]:
        """Tensors [R, ...]; on the device "meta", where times have no values, all rows go to the first."""
        inputs |= {"hidden_states": hidden_states, "timestep": timestep}
        if timestep.is_meta:
            return self.transformer(**inputs)
        high = (timestep.reshape(len(timestep), -1).amax(1) >= self.boundary).cpu()
        rows = [mine.nonzero()[:, 0].to(timestep.device) for mine in (high, ~high)]
        parts = [
            expert(**{name: value[mine] if isinstance(value, Tensor) else value for name, value in inputs.items()})[0]
            for expert, mine in zip(self.children(), rows, strict=True)
            if len(mine)
        ]
        return (torch.cat(parts)[torch.cat(rows).argsort()],)


def parts(
    transformer: nn.Module, weights: dict[str, Tensor] | None = None
) -> Iterator[tuple[str, nn.Module, dict[str, Tensor] | None]]:
    """The transformers of a pipeline: name there, module, and its own of these weights, by the names that they have in it."""
    if not isinstance(transformer, Experts):
        yield "transformer", transformer, weights
        return
    for name, expert in transformer.named_children():
        own = weights and {key.removeprefix(f"{name}."): w for key, w in weights.items() if key.startswith(f"{name}.")}
        yield name, expert, own


def _of_both(name: str) -> Callable:
    def ask(self: Experts, *args, **kwargs) -> None:
        for expert in self.children():
            getattr(expert, name)(*args, **kwargs)

    return ask


for _name in (
    "add_adapter",
    "disable_adapters",
    "enable_adapters",
    "enable_gradient_checkpointing",
    "set_attention_backend",
    "compile_repeated_blocks",
):
    setattr(Experts, _name, _of_both(_name))
