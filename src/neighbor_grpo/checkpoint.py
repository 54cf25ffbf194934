"""What a run needs to go on: trained weights, optimizer, average, iteration.  Nothing random: seeds are derived.

A checkpoint appears whole or not at all (written aside, then renamed), so a run killed at any moment can be resumed.
"""

import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from neighbor_grpo.errors import UserError


def trainable(transformer: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in transformer.named_parameters() if p.requires_grad}


def save(directory: Path, iteration: int, weights: dict[str, Tensor], state: dict, keep: int = 2) -> Path:
    """Write directory/<iteration>; older ones beyond `keep` go."""
    target = directory / f"{iteration:06d}"
    aside = directory / f".{target.name}-{os.getpid()}"
    aside.mkdir(parents=True)
    save_file({name: weight.detach().contiguous() for name, weight in weights.items()}, aside / "weights.safetensors")
    torch.save(state, aside / "state.pt")
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    for old in finished(directory)[:-keep]:
        shutil.rmtree(old)
    return target


def finished(directory: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in directory.glob("[0-9]*") if path.is_dir())


def load(directory: Path, transformer: nn.Module) -> tuple[int, dict]:
    """Put the newest checkpoint's weights into the transformer; its iteration and the remaining state."""
    found = finished(directory)
    if not found:
        raise UserError(f"no checkpoint in {directory} to go on from")
    weights, parameters = load_file(found[-1] / "weights.safetensors"), trainable(transformer)
    if weights.keys() != parameters.keys():
        odd = sorted(weights.keys() ^ parameters.keys())[0]
        raise UserError(f"checkpoint {found[-1]} does not fit this model: {odd} is in one of them only")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    state = torch.load(found[-1] / "state.pt", weights_only=True, map_location="cpu")
    return int(found[-1].name), state
