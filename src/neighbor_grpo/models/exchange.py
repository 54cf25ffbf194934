"""LoRA files for other programs: the strength is part of the matrices.

Some programs read a LoRA's alpha from keys, some from the metadata, and some take it as the rank.  Here alpha / rank is
multiplied into B, and alpha is the rank: all of them add the same B·A to a weight.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from neighbor_grpo.models.adapters import Pair, by_layer

FILE = "pytorch_lora_weights.safetensors"  # what `load_lora_weights` looks for in a directory
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
_SETTINGS = "lora_adapter_metadata"  # where diffusers keeps peft's settings
_PREFIX = "transformer."


@dataclass(frozen=True, eq=False)
class Matrices:
    """Hold the update of a layer's weight [out, in]: `up` @ `down`."""

    down: Tensor  # A [r, in]
    up: Tensor  # B [out, r]

    @property
    def rank(self) -> int:
        """Return r."""
        return len(self.down)

    def beside(self, other: "Matrices") -> "Matrices":
        """Return matrices whose product is the sum of both products."""
        return Matrices(torch.cat([self.down, other.down.to(self.down)]), torch.cat([self.up, other.up.to(self.up)], 1))

    @property
    def product(self) -> Tensor:
        """Return the update, fp32."""
        return self.up.float() @ self.down.float()


Layers = Mapping[str, Matrices]  # by the name of the layer


@dataclass(frozen=True, eq=False)
class Adapter:
    """Hold a LoRA whose layers, by their names in the transformer, have their strength in `up`."""

    layers: Layers
    targets: list[str]  # endings of the names of the layers

    def plus(self, other: Mapping[str, Pair], strength: float) -> "Adapter":
        """Add another LoRA: the matrices of both stand side by side, and the ranks add up."""
        layers = dict(self.layers)
        for layer, pair in other.items():
            added = Matrices(pair.down, pair.up * (strength * pair.alpha / pair.rank))
            layers[layer] = layers[layer].beside(added) if layer in layers else added
        return Adapter(layers, sorted(layers))


def read_adapter(directory: Path) -> Adapter:
    """Read what `save_lora` wrote for one transformer, and multiply alpha / rank into B."""
    with safe_open(directory / FILE, "pt") as stored:
        settings = {k.removeprefix(_PREFIX): v for k, v in json.loads(stored.metadata()[_SETTINGS]).items()}
        keys = [key for key in stored.keys() if key.endswith(DOWN)]  # noqa: SIM118, not a dict
        layers = {key.removeprefix(_PREFIX).removesuffix(DOWN): _pair(stored, key) for key in keys}
    targets = settings["target_modules"]
    return Adapter(
        {
            layer: Matrices(matrices.down, matrices.up * _strength(settings, layer, matrices.rank))
            for layer, matrices in layers.items()
        },
        targets if isinstance(targets, list) else [targets],
    )


def _pair(stored: Any, key: str) -> Matrices:
    return Matrices(stored.get_tensor(key), stored.get_tensor(key.removesuffix(DOWN) + UP))


def _strength(settings: Mapping[str, Any], layer: str, rank: int) -> float:
    """Return what peft multiplies the product of a layer's matrices by."""
    own = by_layer(settings, "alpha_pattern", layer)
    alpha = float(settings["lora_alpha"] if own is None else own)
    return alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def write_layers(file: Path, layers: Layers, adapter: Adapter | None) -> None:
    """Write layers by their full names, and alpha = rank.

    adapter: the same LoRA by diffusers' names, for the metadata that diffusers reads; None if it does not know these layers.
    """
    tensors = {layer + DOWN: matrices.down for layer, matrices in layers.items()}
    tensors |= {layer + UP: matrices.up for layer, matrices in layers.items()}
    metadata = {"format": "pt"}
    if adapter:
        settings = {f"{_PREFIX}{key}": value for key, value in _settings(adapter).items()}
        metadata[_SETTINGS] = json.dumps(settings, indent=2, sort_keys=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata)


def _settings(adapter: Adapter) -> dict[str, Any]:
    """Return peft's settings of a LoRA with alpha = rank."""
    ranks = {layer: matrices.rank for layer, matrices in adapter.layers.items()}
    rank = max(set(ranks.values()), key=list(ranks.values()).count)
    others = {f"^{layer}": own for layer, own in ranks.items() if own != rank}
    return {"r": rank, "lora_alpha": rank, "rank_pattern": others, "alpha_pattern": others, "target_modules": adapter.targets}


def add_to(weight: Tensor, matrices: Matrices) -> Tensor:
    """Return weight + up @ down, computed in fp32, in the data type of the weight."""
    return (weight.to(torch.float32) + matrices.product).to(weight.dtype)
