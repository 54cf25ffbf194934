"""Checkpoints: what a run needs to resume.  Trained weights, optimizer, average, lagging copies, iteration; no random state.

A checkpoint has a manifest, is written aside and then renamed, so a run that is killed at any moment can be resumed.  It holds
full tensors, so it can be resumed on a different number of ranks, sharded or not.
"""

import re
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic
from neighbor_grpo.training.ranks import divided

KIND = "checkpoint"


def trainable(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name."""
    return {name: p for name, p in transformer.named_parameters() if p.requires_grad}


def place(directory: Path, iteration: int) -> Path:
    """Return where the checkpoint of an iteration lies."""
    return directory / f"{iteration:06d}"


def save(directory: Path, iteration: int, weights: dict[str, Tensor], state: dict, keep: int = 2) -> None:
    """Write directory/<iteration>; remove older ones beyond `keep`."""
    with atomic.directory(place(directory, iteration), KIND) as aside:
        save_file({name: weight.detach().contiguous() for name, weight in weights.items()}, aside / "weights.safetensors")
        with (aside / "state.pt").open("wb") as file:
            torch.save(state, file)
    drop_old(directory, keep)


def drop_old(directory: Path, keep: int) -> None:
    """Remove the checkpoints that are older than the newest `keep`."""
    for old in complete(directory)[:-keep]:
        atomic.remove(old)


def complete(directory: Path) -> list[Path]:
    """Return the checkpoints, oldest first."""
    return sorted(path for path in directory.glob("*") if path.is_dir() and re.fullmatch("[0-9]{6,}", path.name))


def newest(directory: Path) -> tuple[Path | None, list[str]]:
    """Return the newest undamaged checkpoint, and what is wrong with those that are newer.

    A damaged one is kept aside as damaged-<iteration>.  Raises UserError where all are damaged.
    """
    found = complete(directory)
    said: list[str] = []
    for checkpoint in reversed(found):
        try:
            atomic.check(checkpoint, KIND)
            return checkpoint, said
        except atomic.DamagedError as error:
            aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.rename(aside)
            said.append(f"{error}; kept as {aside.name}, and the checkpoint before it is used")
    if found:
        raise UserError(f"every checkpoint in {directory} is damaged, {said[0]}: put back a copy, or start a new run")
    return None, said


@torch.no_grad()
def load(checkpoint: Path, weights: dict[str, nn.Parameter]) -> dict:
    """Load a checkpoint into `weights`; return the other state, whose tensors are read from the file when they are used."""
    with safe_open(checkpoint / "weights.safetensors", "pt") as stored:
        shapes = {name: list(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118, not a dict
        for name in sorted(weights.keys() | shapes.keys()):
            if name not in weights or name not in shapes or list(weights[name].shape) != shapes[name]:
                raise UserError(f"{checkpoint} does not fit this model: {name} differs; use the model that the run began with")
        for name, weight in weights.items():
            weight.copy_(divided(stored.get_tensor(name), weight))
    return torch.load(checkpoint / "state.pt", weights_only=True, map_location="cpu", mmap=True)
