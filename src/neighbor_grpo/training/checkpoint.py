"""Checkpoints: what a run needs to resume.  Trained weights, optimizer, average, lagging copies, iteration; no random state.

A checkpoint is written aside and then renamed, so a run that is killed at any moment can be resumed.  It holds full tensors,
so it can be resumed on a different number of ranks, sharded or not.
"""

import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic
from neighbor_grpo.training.ranks import divided


def trainable(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name."""
    return {name: p for name, p in transformer.named_parameters() if p.requires_grad}


def place(directory: Path, iteration: int) -> Path:
    """Return where the checkpoint of an iteration lies."""
    return directory / f"{iteration:06d}"


def save(directory: Path, iteration: int, weights: dict[str, Tensor], state: dict, keep: int = 2) -> None:
    """Write directory/<iteration>; remove older ones beyond `keep`, and what a killed run left unfinished."""
    for left in directory.glob(".[0-9]*"):
        shutil.rmtree(left)
    with atomic.directory(place(directory, iteration), "checkpoint") as aside:
        save_file({name: weight.detach().contiguous() for name, weight in weights.items()}, aside / "weights.safetensors")
        torch.save(state, aside / "state.pt")
    for old in finished(directory)[:-keep]:
        shutil.rmtree(old)


def finished(directory: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    return sorted(path for path in directory.glob("[0-9]*") if path.is_dir())


@torch.no_grad()
def load(directory: Path, weights: dict[str, nn.Parameter]) -> tuple[int, dict]:
    """Load the newest checkpoint into `weights`; return its iteration and the other state.

    The state's tensors are read from the file when they are used.
    """
    found = finished(directory)
    if not found:
        raise UserError(f"no checkpoint in {directory} to resume from")
    with safe_open(found[-1] / "weights.safetensors", "pt") as stored:
        if odd := sorted(weights.keys() ^ set(stored.keys())):
            raise UserError(
                f"checkpoint {found[-1]} does not fit this model: {odd[0]} is in one of them only; use the run's settings"
            )
        for name, weight in weights.items():
            weight.copy_(divided(stored.get_tensor(name), weight))
    state = torch.load(found[-1] / "state.pt", weights_only=True, map_location="cpu", mmap=True)
    return int(found[-1].name), state
