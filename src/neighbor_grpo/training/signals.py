"""Signals that ask a run to stop: it is saved within seconds, and resumes where it stopped.

encode, rollout, decode, reward, evaluate   given up at once: the weights are those of the last whole iteration
update                                      finished, unless it takes longer than GRACE seconds; then given up, and the
                                            run resumes from its last checkpoint
writing                                     finished
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE = 8.0  # seconds; Slurm and container hosts kill after ten or more
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # SIGUSR1: Slurm's warning before the limit


class SignalError(Exception):
    """Say that a signal stopped the run, and how to resume it."""

    def __init__(self, signum: int, command: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; resume with: {command}")
        self.signum = signum


class GivenUpError(KeyboardInterrupt):
    """Say that the present work was given up for a signal.  Not an Exception: nothing on the way may take it for a failure."""


class StopRequest:
    """Remember the first signal in `signum`, and give up what can be given up; leave at once on a second SIGINT."""

    signum: int | None = None
    _interruptible = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals for a while."""
        handlers = dict.fromkeys(SIGNALS, self._handle) | {signal.SIGALRM: self._give_up}
        before = {s: signal.signal(s, handler) for s, handler in handlers.items()}
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for s, handler in before.items():
                signal.signal(s, handler)

    @contextmanager
    def interruptible(self, alone: bool = True) -> Iterator[None]:
        """Let a signal give up the work of this block with GivenUpError.

        alone: without other ranks, which would wait for this one; with them, only the deadline gives up.
        """
        self._interruptible = alone
        try:
            if alone and self.signum is not None:
                raise GivenUpError
            yield
        finally:
            self._interruptible = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            if signum == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.signum = signum
        if self._interruptible:
            raise GivenUpError
        signal.setitimer(signal.ITIMER_REAL, GRACE)

    def finished(self) -> None:
        """Stop the clock: what must not be given up any more, for instance saving, begins."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _give_up(self, signum: int, frame: FrameType | None) -> None:
        raise GivenUpError
