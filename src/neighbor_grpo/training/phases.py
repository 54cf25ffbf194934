"""How long each phase of an iteration takes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class Phases:
    """Add up seconds by phase until they are cleared; `shown` is called with the name of each phase that begins."""

    def __init__(self, device: torch.device, shown: Callable[[str], None] = lambda name: None) -> None:
        self.device, self.shown = device, shown
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add what happens here to the phase `name`."""
        self.shown(name)
        began = time.perf_counter()
        yield
        if self.device.type == "cuda":  # once a phase, or its time would be counted in the next one
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def clear(self) -> None:
        """Begin a new iteration."""
        self.seconds = {}
