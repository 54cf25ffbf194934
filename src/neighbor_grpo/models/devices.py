"""Devices and data types by the names that settings use."""

import torch

from neighbor_grpo.errors import UserError
from neighbor_grpo.models.settings import known_device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pick_device(name: str) -> torch.device:
    """Return a device by its name; auto is cuda where there is one, else mps, else cpu.

    Raises UserError for an unknown name and for a device that this machine does not have.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, present in available.items() if present))
    if not available[known_device(name)]:
        raise UserError(f"device {name!r} is not available on this machine: choose auto or cpu")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return a data type by its name; auto is bfloat16 on a CUDA device, else float32.  Raises UserError if it is unknown."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise UserError(f"unknown dtype {name!r}: choose auto, {' or '.join(DTYPES)}")
    return DTYPES[name]
