"""Weights that are stored in fewer bits and cannot be trained themselves; a LoRA over them can."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neighbor_grpo.errors import UserError, shown

_TORCHAO = {"Int8WeightOnlyConfig": "int8", "Float8WeightOnlyConfig": "fp8"}
_WHOLE = "take the model with its whole weights, and set model.quantize"


@dataclass(frozen=True)
class Frozen:
    """Hold how weights are stored.

    packed: how they are kept in memory, a value of model.quantize or "gguf"; None = unpacked when they are loaded.
    nbytes: in all, None = by `packed`.
    """

    what: str
    packed: str | None
    nbytes: int | None = None


def stored(place: str, config: Mapping[str, Any]) -> Frozen | None:
    """Return how the weights beside a configuration are stored; None: as they are.

    Raises UserError for a way that no LoRA is trained over.
    """
    found = config.get("quantization_config")
    if found is None:
        return None
    method = found.get("quant_method") if isinstance(found, Mapping) else None
    if method == "bitsandbytes" and found.get("load_in_4bit"):
        return Frozen("quantized by bitsandbytes", "nf4")
    if method == "torchao":
        kinds = [name for name in _TORCHAO if name in str(found.get("quant_type"))]
        if kinds:
            return Frozen("quantized by torchao", _TORCHAO[kinds[0]])
    raise UserError(f"{place} is quantized by {shown(method)} in a way that no LoRA is trained over: {_WHOLE}")
