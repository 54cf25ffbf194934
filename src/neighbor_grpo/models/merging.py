"""A pipeline directory with trained weights: the files, shards and data types of its base, one tensor in memory at a time."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from torch import Tensor

from neighbor_grpo.errors import UserError
from neighbor_grpo.models.directory import INDEX, Index, check_directory
from neighbor_grpo.models.exchange import Layers, add_to
from neighbor_grpo.models.registry import locate

# Other forms of the weights, which would stay untrained, and code.
_LEFT_OUT = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5", "*.gguf", "*.onnx*", "*.py", "__pycache__", ".*")
_PLACES = ("_name_or_path", "name_or_path")  # keys in which libraries note where a model was loaded from
_WHOLE = (torch.float32, torch.bfloat16, torch.float16)  # types whose numbers are the weights themselves


@dataclass(frozen=True)
class Update:
    """Hold which of a transformer's weights are trained, and how to get the new value of one from its name and old value."""

    names: frozenset[str]
    value: Callable[[str, Tensor], Tensor]


def update_by_lora(layers: Layers) -> Update:
    """Return the update that adds a LoRA."""
    return Update(
        frozenset(f"{layer}.weight" for layer in layers),
        lambda name, old: add_to(old, layers[name.removesuffix(".weight")]),
    )


def update_by_weights(folder: Path) -> Update:
    """Return the update that replaces weights by those of `folder`, in the data types of the old ones."""
    stored = {name: opened for file in sorted(folder.glob("*.safetensors")) for opened, name in _names(file)}
    return Update(frozenset(stored), lambda name, old: stored[name].get_tensor(name).to(old.dtype))


def write_merged(path_or_id: str | Path, index: Index, updates: Mapping[str, Update], out: Path) -> None:
    """Copy a pipeline to the directory `out`, and update its transformers by their names in the pipeline.

    Raises UserError where its files are damaged, or do not hold all weights to update as plain numbers.
    """
    place = locate(path_or_id)
    if not isinstance(place, Path):
        place = Path(DiffusionPipeline.download(place, use_safetensors=True, **dict.fromkeys(index.absent)))
    check_directory(place, index)
    shutil.copyfile(place / INDEX, out / INDEX)
    for name in index.components:
        shutil.copytree(place / name, out / name, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    for name, update in updates.items():
        files = sorted((out / name).glob("*.safetensors"))
        found = {weight for file in files for weight in _rewrite(place / name / file.name, file, update)}
        if missing := sorted(update.names - found):
            raise UserError(f"{place / name} has no weights {missing[0]}: choose --format diffusers, or check model.path")
    remove_places(out)


def _rewrite(old: Path, new: Path, update: Update) -> list[str]:
    """Overwrite the weights to update in `new`, a copy of `old`; return their names."""
    with new.open("r+b") as file, safe_open(old, "pt") as stored:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
        names = sorted(update.names & header.keys(), key=lambda name: header[name]["data_offsets"])
        for name in names:
            weight = stored.get_tensor(name)
            if weight.dtype not in _WHOLE:
                raise UserError(f"{old.name} holds {name} as {weight.dtype}, not as plain numbers: choose --format diffusers")
            value = update.value(name, weight)
            assert value.dtype == weight.dtype and value.shape == weight.shape, name
            file.seek(start + header[name]["data_offsets"][0])
            file.write(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return names


def _names(file: Path) -> list[tuple[Any, str]]:
    """List the tensors of a file by name, each with the opened file."""
    opened = safe_open(file, "pt")
    return [(opened, name) for name in opened.keys()]  # noqa: SIM118, not a dict


def remove_places(folder: Path) -> None:
    """Remove from a model's configurations where it was loaded from."""
    for file in [*folder.rglob("*config.json"), *folder.rglob(INDEX)]:
        found = json.loads(file.read_bytes())
        if any(key in found for key in _PLACES):
            kept = {key: value for key, value in found.items() if key not in _PLACES}
            file.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
