"""What the commands say on the terminal, and what the libraries below them do not."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import IO, TypeVar

from neighbor_grpo.errors import printable

T = TypeVar("T")

# Environment that libraries read at their import: their advice and progress bars are for those who write programs with them.
_ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "DIFFUSERS_VERBOSITY": "error",
    "DIFFUSERS_NO_ADVISORY_WARNINGS": "1",
    "BITSANDBYTES_NOWELCOME": "1",
    "TQDM_DISABLE": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
# Loggers of torch, which has a handler of its own, that warn while it is imported: of others' old interfaces.
_LOGGERS = ("torch.utils._pytree", "torch.distributed.elastic.multiprocessing.redirects")
# Warnings of libraries about what they do among themselves, by their text.
_WARNINGS = (
    r"The `local_dir_use_symlinks` argument is deprecated",  # huggingface_hub, of the call that diffusers makes
    r"Mismatch dtype between input and weight",  # torch, of a fused kernel that is not used
)

_busy = False  # whether a display is drawn: a bar must not be drawn into it


def silence_libraries() -> None:
    """Keep the advice and the bars of libraries off the terminal; errors stay.  Call it before they are imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():  # bars of downloads are for terminals
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if logging.lastResort:  # where the records of every other library go: torchao of other GPUs, bitsandbytes of some CPUs
        logging.lastResort.setLevel(logging.ERROR)
    for logger in _LOGGERS:
        logging.getLogger(logger).addFilter(_is_error)  # a filter stays where torch sets levels anew
    for text in _WARNINGS:
        warnings.filterwarnings("ignore", message=text, category=UserWarning)
    for library in ("diffusers", "transformers"):  # imported before: in a program that calls `main` itself
        if library in sys.modules:
            sys.modules[library].utils.logging.disable_progress_bar()
            sys.modules[library].utils.logging.set_verbosity_error()


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def is_live(stream: IO[str]) -> bool:
    """Return whether a stream is a terminal on which a display may move: not in CI, not with NO_COLOR, not on other ranks."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("CI") or os.environ.get("TERM") == "dumb"
    return stream.isatty() and not plain and os.environ.get("RANK", "0") == "0"


@contextmanager
def drawing() -> Iterator[None]:
    """Mark that a display is drawn on the terminal."""
    global _busy
    before, _busy = _busy, True
    try:
        yield
    finally:
        _busy = before


def bar(items: Iterable[T], title: str, stream: IO[str] | None = None) -> Iterator[T]:
    """Yield `items`, with a progress bar on a terminal; it vanishes at the end."""
    stream = stream or sys.stderr
    total = len(items) if isinstance(items, Sized) else None
    if _busy or total in (0, 1) or not is_live(stream):
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with drawing(), Progress(*columns, console=Console(file=stream), transient=True) as progress:
        yield from progress.track(items, total=total, description=title)


@contextmanager
def working(title: str, stream: IO[str] | None = None) -> Iterator[None]:
    """Say on a terminal that something begins, and how many seconds it took."""
    stream = stream or sys.stderr
    if _busy or not is_live(stream):
        yield
        return
    began = time.perf_counter()
    print(f"{title} ...", file=stream, flush=True)
    yield
    print(f"{title}: {time.perf_counter() - began:.0f} s", file=stream, flush=True)


def say(text: object, stream: IO[str] | None = None) -> None:
    """Print a text of one or more lines, whatever is in it: nothing of it controls the terminal."""
    print(safe_lines(str(text)), file=stream or sys.stdout, flush=True)


def mistake(text: str) -> None:
    """Write a user's mistake as one line on stderr."""
    sys.stderr.write(f"neighbor-grpo: {one_line(text)}\n")  # in one piece: other ranks write theirs


def one_line(text: str, most: int = 2000) -> str:
    """Make one short line of a text from anywhere: single spaces, the middle of a long text left out, and `printable`."""
    return _shorten(printable(_shorten(" ".join(text.split()), most)), most)


def safe_lines(text: str, most: int = 2000) -> str:
    """Make each line of a text `printable` and at most `most` characters long."""
    return "\n".join(_shorten(printable(_shorten(line.expandtabs(), most)), most) for line in text.split("\n"))


def _shorten(text: str, most: int) -> str:
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]} … {text[-half:]}"


def reason_of(error: BaseException, most: int = 500) -> str:
    """Describe an exception from someone else's code by its type and text, in one safe line."""
    try:
        text = str(error)
    except Exception as broken:  # an exception's own __str__ may raise anything
        text = f"its text cannot be read ({type(broken).__name__})"
    return one_line(f"{type(error).__name__}: {text}" if text else type(error).__name__, most)
