"""Signals that ask a run to stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Remember the first SIGINT or SIGTERM in `signum`, so that the run stops after its iteration; stop at once on a second."""

    signum: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals for a while."""
        before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum
        print("stopping after this iteration (again: at once, from the last checkpoint)", flush=True)
