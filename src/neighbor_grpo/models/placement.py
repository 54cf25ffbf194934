"""Modules that are on the device only while they are used."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn


@contextmanager
def on_device(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Move a module to the device, and back to the CPU at the end."""
    module.to(device)
    try:
        yield
    finally:
        module.to("cpu")


@contextmanager
def on_device_in_turn(modules: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Move each module to the device during its own forward only, so that the largest decides the peak, not the sum.

    The inputs of a module move with it, because some pipelines send them to where they find the module before its forward.
    """

    def arrive(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        module.to(device)
        return send_to_device(args, device), send_to_device(kwargs, device)

    def leave(module: nn.Module, *_: object) -> None:
        module.to("cpu")

    hooks = [module.register_forward_pre_hook(arrive, with_kwargs=True) for module in modules]
    hooks += [module.register_forward_hook(leave) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
