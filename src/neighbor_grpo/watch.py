"""Watching a run: how long each phase takes, and whether somebody asked it to stop."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Phases(dict[str, float]):
    """Seconds by phase."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if self.device.type == "cuda":  # once a phase, or its time would be booked on the next
            torch.cuda.synchronize()
        self[name] = time.perf_counter() - began


class Stop:
    """SIGINT and SIGTERM ask for a stop after the iteration (`signum`); a second one stops at once."""

    signum: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)

    def _ask(self, signum: int, frame) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum
        print("stopping after this iteration (again: at once, from the last checkpoint)", flush=True)
