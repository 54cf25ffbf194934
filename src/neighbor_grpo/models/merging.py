"""A pipeline directory with trained weights: the files, shards and data types of its base, one tensor in memory at a time."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from neighbor_grpo.errors import UserError
from neighbor_grpo.models.directory import INDEX
from neighbor_grpo.models.exchange import Layers, add_to
from neighbor_grpo.models.registry import Parts
from neighbor_grpo.models.settings import ModelSettings

# Other forms of the weights, which would stay untrained, and code.
_LEFT_OUT = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5", "*.gguf", "*.onnx*", "*.py", "__pycache__", ".*")
_PLACES = ("_name_or_path", "name_or_path")  # keys in which libraries note where a model was loaded from
_PLAIN = ("F32", "BF16", "F16")  # types of a file whose numbers are the weights themselves


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


def write_merged(path_or_id: str | Path, revision: str | None, updates: Mapping[str, Update], out: Path) -> None:
    """Copy a pipeline to the directory `out`, and update its transformers by their names in the pipeline.

    Raises UserError where its files are damaged, or do not hold all weights to update as plain numbers.
    """
    parts = Parts.of(path_or_id, ModelSettings(revision=revision), weights=True)
    place, index = parts.place, parts.index
    for name, update in updates.items():
        _check(place / name, update)
    shutil.copyfile(place / INDEX, out / INDEX)
    for name in index.components:
        left_out = shutil.ignore_patterns(*_LEFT_OUT)
        shutil.copytree(place / name, out / name, ignore=left_out, copy_function=shutil.copyfile)  # a base may be read-only
    for name, update in updates.items():
        for file in sorted((out / name).glob("*.safetensors")):
            _rewrite(place / name / file.name, file, update)
    remove_places(out)


def _check(folder: Path, update: Update) -> None:
    """Raise UserError unless a transformer's files hold all weights to update as plain numbers."""
    missing = set(update.names)
    for file in sorted(folder.glob("*.safetensors")):
        for opened, name in _names(file):
            if name in update.names and (kind := opened.get_slice(name).get_dtype()) not in _PLAIN:
                raise UserError(f"{file} holds {name} as {kind}, which is quantized: choose --format diffusers")
            missing.discard(name)
    if missing:
        raise UserError(f"{folder} has no weights {min(missing)}: choose --format diffusers, or check model.path")


def _rewrite(old: Path, new: Path, update: Update) -> None:
    """Overwrite the weights to update in `new`, a copy of `old`."""
    with new.open("r+b") as file, safe_open(old, "pt") as stored:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
        for name in sorted(update.names & header.keys(), key=lambda name: header[name]["data_offsets"]):
            weight = stored.get_tensor(name)
            value = update.value(name, weight)
            assert value.dtype == weight.dtype and value.shape == weight.shape, name
            file.seek(start + header[name]["data_offsets"][0])
            file.write(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)


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
