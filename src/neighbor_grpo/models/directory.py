"""A pipeline directory, checked before a library opens it: its model_index.json, its components, and their files.

A directory comes from anywhere.  It must not decide which modules are imported or which folders are read, and what a broken
download left behind is named here; the libraries would say it in many ways, or load it.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from neighbor_grpo.errors import UserError, printable, shown
from neighbor_grpo.files.text import read_text

LIBRARIES = ("diffusers", "transformers")  # whose classes a model_index.json may name
INDEX = "model_index.json"
MOST_JSON = 2**26  # bytes of a configuration or of an index of weights
_NAME, _PART = r"(?:diffusion_pytorch_model|model)", r"-\d{5}-of-\d{5}"  # of the files of weights, as the libraries write them
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_POINTER = b"version https://git-lfs"
_AGAIN = "download the model again"


@dataclass(frozen=True)
class Index:
    """Hold what a model_index.json says: the pipeline class, library and class of each component, and settings."""

    pipeline: str
    components: Mapping[str, tuple[str, str]]
    absent: frozenset[str]  # components that the pipeline was saved without, for instance SD3's T5
    settings: Mapping[str, Any]


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object of a model.  Raises UserError."""
    try:
        found = json.loads(read_text(file, "file", MOST_JSON))
    except (json.JSONDecodeError, RecursionError) as error:
        pointer = file.read_bytes()[:100].startswith(_POINTER)
        reason = "is a pointer of git-lfs: run git lfs pull" if pointer else f"is not JSON ({error}): {_AGAIN}"
        raise UserError(f"{file} {reason}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} must hold a JSON object, not a {type(found).__name__}: {_AGAIN}")
    return found


def read_index(place: Path) -> Index:
    """Read the model_index.json of a pipeline directory.  Raises UserError for what does not name classes of LIBRARIES."""
    found = read_object(place / INDEX)
    pipeline = found.get("_class_name")
    if not isinstance(pipeline, str):  # a list names code that comes with the model
        raise UserError(
            f"{place / INDEX}: _class_name must be the name of a diffusers pipeline, not {shown(pipeline)}: choose a "
            "pipeline without code of its own"
        )
    components, absent, settings = {}, set(), {}
    for name, value in found.items():
        if name.startswith("_"):
            continue
        if not isinstance(value, list):
            settings[name] = value
        elif value == [None, None]:
            absent.add(name)
        else:
            components[name] = _component(place, name, value)
    return Index(pipeline, components, frozenset(absent), settings)


def _component(place: Path, name: str, value: list[Any]) -> tuple[str, str]:
    match value:
        case [str(library), str(kind)] if library in LIBRARIES and kind.isidentifier() and name.isidentifier():
            return library, kind
        case [str(library), str(kind)] if name.isidentifier():
            named = f"{shown(library)[1:-1]}.{shown(kind)[1:-1]}"
        case _:
            named = shown(value)
    raise UserError(
        f"the component {shown(name)} of {shown(str(place))} is a {named}: choose a pipeline whose components are classes of "
        f"{' or '.join(LIBRARIES)}"
    )


def check_directory(place: Path, index: Index, weights: bool = True) -> None:
    """Check that the components of a pipeline directory are there and whole; `weights`: their weights too.

    Every file is opened, and of its content a header is read.  Raises UserError that names the file.
    """
    for name in index.components:
        if not (place / name).is_dir():
            raise UserError(f"the component {name!r} of {shown(str(place))} is missing: {_AGAIN}")
        check_component(place / name, weights)


def check_component(folder: Path, weights: bool) -> None:
    """Check the files of a component as `check_directory` does."""
    for file in sorted(folder.iterdir()):
        if file.suffix == ".py":
            raise UserError(f"{file} is Python code, and no code of a model is run: remove the file")
        if file.is_file():
            check_file(file, weights)
    if (config := folder / "config.json").is_file():
        attention = [read_object(config).get(key) for key in ("attn_implementation", "_attn_implementation")]
        if any(isinstance(value, str) and "/" in value for value in attention):
            raise UserError(f"{config} names code of the hub for its attention: remove the key, and set model.attention")


def check_file(file: Path, weights: bool = True, again: str = _AGAIN) -> None:
    """Raise UserError for a file that is a pointer of git-lfs, was cut off, or is not JSON; `again`: the remedy."""
    size, name = file.stat().st_size, printable(str(file))
    try:
        with file.open("rb") as opened:
            if opened.read(len(_POINTER)) == _POINTER:
                raise UserError(f"{name} is a pointer of git-lfs, not the file: run git lfs pull, or {again}")
            opened.seek(0)
            if file.suffix == ".safetensors" and weights and (whole := _length(opened, size)) != size:
                raise UserError(f"{name} is damaged ({size} bytes of {whole or 'an unknown number'}): {again}")
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror}): check its permissions") from error
    if file.suffix == ".json" and "config" in file.name:
        read_object(file)


def safetensors_is_whole(file: Path) -> bool:
    """Return whether a .safetensors file has the length that its header says."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        return _length(opened, size) == size


def read_header(file: Path) -> dict[str, Any]:
    """Return the header of a .safetensors file: dtype, shape and data_offsets of each tensor; empty where it is damaged."""
    with file.open("rb") as opened:
        return _header(opened, file.stat().st_size)[1]


def _length(opened: BinaryIO, size: int) -> int | None:
    """Return the bytes that a .safetensors file must have, by its header; None where it has none."""
    start, tensors = _header(opened, size)
    try:
        ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
        return start + max(ends, default=0) if start else None
    except (KeyError, TypeError, AttributeError, IndexError):
        return None


def _header(opened: BinaryIO, size: int) -> tuple[int, dict[str, Any]]:
    """Return where the tensors of a .safetensors file begin, and its header; (0, {}) where it has none."""
    head = opened.read(8)
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > min(size, 10**8):
        return 0, {}
    try:
        found = json.loads(opened.read(length))
    except (ValueError, RecursionError):
        return 0, {}
    return (8 + length, found) if isinstance(found, dict) else (0, {})


# ---------------------------------------------------------------- files of weights


def weight_files(names: Iterable[str], variant: str | None) -> list[str]:
    """Select, of the file names of a component, those of its weights: of a variant, or those that are of none.

    >>> weight_files(["config.json", "model.safetensors", "model.fp16.safetensors", "pytorch_model.bin"], "fp16")
    ['model.fp16.safetensors']
    """
    mark = rf"\.{re.escape(variant)}" if variant else ""
    named = re.compile(rf"{_NAME}(?:{mark}(?:{_PART})?|{_PART}{mark})\.safetensors|{_NAME}\.safetensors\.index{mark}\.json")
    return [name for name in names if named.fullmatch(name)]


def check_weights(folder: str, names: Iterable[str], variant: str | None, convert: str) -> None:
    """Check that a component has weights among the file names of its folder.

    convert: Python that writes its .bin files as .safetensors.  Raises UserError that says which weights there are.
    """
    names = list(names)
    found = weight_files(names, variant)
    if any(not re.search(_PART, name) for name in found):  # one file, or the index of several
        return
    others = sorted({m[1] for name in names if (m := re.fullmatch(rf"{_NAME}\.([^.]+?)(?:{_PART})?\.safetensors", name))})
    plain = ["null"] if variant and weight_files(names, None) else []
    if found:
        remedy = f"parts of its weights, and no index of them: {_AGAIN}"
    elif plain + others:
        remedy = f"no weights of model.variant={variant or 'null'}: set it to {' or '.join(plain + others)}"
    elif any(name.endswith(PICKLES) for name in names):
        remedy = f"no .safetensors: its other files can run code when they are read; convert them once, {convert}"
    else:
        remedy = f"no .safetensors: {_AGAIN}"
    raise UserError(f"{folder} has {remedy}")


def check_shards(folder: Path, variant: str | None) -> None:
    """Raise UserError where a file is missing that an index of weights names."""
    for name in weight_files((path.name for path in folder.iterdir()), variant):
        if not name.endswith(".json"):
            continue
        shards = read_object(folder / name).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            raise UserError(f"{folder / name} has no weight_map: {_AGAIN}")
        for shard in sorted(set(shards.values())):
            if Path(shard).name != shard or not os.path.isfile(folder / shard):
                raise UserError(f"{folder / Path(shard).name} is missing, which {name} names: {_AGAIN}")
