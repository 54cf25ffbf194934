"""Runs as they go on: their files are read again where they have changed, and never written."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from neighbor_grpo.config import Config
from neighbor_grpo.errors import UserError
from neighbor_grpo.files.lock import owner_of
from neighbor_grpo.run import files
from neighbor_grpo.run.files import Figures
from neighbor_grpo.run.findings import FIRST
from neighbor_grpo.run.groups import GROUPS
from neighbor_grpo.run.record import COMPARISON, CONFIG, FILE, Record, is_run, read_record
from neighbor_grpo.run.samples import SAMPLES
from neighbor_grpo.run.view import Totals, View

WAITING = "It has not recorded anything yet: its model is loaded, or evaluated before training."
_RECENT = 20  # iterations whose mean time is told
_FILES = (CONFIG, FILE, "metrics.jsonl", SAMPLES, GROUPS)


def runs_of(places: Sequence[Path]) -> list[Path]:
    """Return the runs in these directories, each a run or a comparison.  Raises UserError."""
    found = [run for place in places for run in _runs_of(place)]
    whole = [run.resolve() for run in found]
    if twice := next((run for run, path in zip(found, whole, strict=True) if whole.count(path) > 1), None):
        raise UserError(f"{twice} is given twice: give each run once")
    return found


def _runs_of(place: Path) -> list[Path]:
    if (place / COMPARISON).is_file():
        runs = sorted(file.parent for file in place.glob(f"*/*/{CONFIG}"))
        if not runs:
            raise UserError(f"no run of the comparison {place} has begun: begin it with neighbor-grpo compare, then watch it")
        return runs
    if not is_run(place) and owner_of(place) is None:  # a run that loads its model has only its lock
        raise UserError(f"no run in {place}: give the directory of a run or of a comparison")
    return [place]


def names_of(runs: Sequence[Path]) -> list[str]:
    """Return a name for each run: its path below the folder that all share."""
    shared = Path(os.path.commonpath([run.resolve().parent for run in runs]))
    return [run.resolve().relative_to(shared).as_posix() for run in runs]


class Tail:
    """Read a file of JSON lines as it grows.  A last line that is not whole yet is left for the next time."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._forget()

    def _forget(self) -> None:
        self.lines: list[Figures] = []
        self._end, self._last = 0, b""  # of what has been read: its size, and its last line

    def read(self) -> bool:
        """Read new lines; return whether the old ones are gone: a run that is resumed drops what it does again.

        Raises DamagedError for a line that cannot be read.
        """
        data = io.BytesIO() if not self.file.is_file() else self.file.open("rb")
        with data as opened:
            opened.seek(self._end - len(self._last))
            if gone := opened.read(len(self._last)) != self._last:
                self._forget()
            opened.seek(self._end)
            *whole, _ = opened.read().split(b"\n")
        for text in whole:
            self.lines.append(files.parse_line(text, self.file, len(self.lines) + 1))
            self._end, self._last = self._end + len(text) + 1, text + b"\n"
        return gone


@dataclass(frozen=True)
class News:
    """Hold what has changed of a run since the last look: "all", or some of "state", "evaluation", "samples", "groups"."""

    kinds: frozenset[str] = frozenset()
    lines: Sequence[Figures] = ()  # new ones, where not all has changed


class Followed:
    """Follow one run; `view` is None before the run has begun, and `state` says how far it is."""

    def __init__(self, run: Path, name: str) -> None:
        self.run, self.name = run, name
        self.view: View | None = None
        self.state = WAITING
        self._tail, self._totals = Tail(run / "metrics.jsonl"), Totals()
        self._known = 0  # lines that are in the totals
        self._seen: dict[str, Any] = {}

    def look(self) -> News:
        """Read what has changed.  A file that cannot be read is named in `state`, and read again once it changes."""
        seen: dict[str, Any] = {name: _stamp(self.run / name) for name in _FILES}
        seen["owner"] = owner_of(self.run)
        changed = {name for name, stamp in seen.items() if self._seen.get(name) != stamp}
        if not changed or not seen[CONFIG] or not seen[FILE]:
            return News()
        self._seen = seen
        try:
            return self._read(changed)
        except (UserError, OSError) as error:
            self.state = f"{error}."
            self.view = self.view and replace(self.view, state=self.state)
            return News(frozenset({"state"}))

    def _read(self, changed: set[str]) -> News:
        again = self.view is None or bool(changed & {CONFIG, FILE})
        config = files.read_config(self.run) if self.view is None or again else self.view.config
        record = read_record(self.run) if self.view is None or again else self.view.record
        if gone := self._tail.read():
            self._known, self._totals = 0, Totals()
        new = self._tail.lines[self._known :]
        self._known = len(self._tail.lines)
        self.state = self._worded(config, record)
        self.view = View(self.run, self.name, config, record, self._tail.lines, self._totals.add(new), self.state)
        if gone or again:
            return News(frozenset({"all"}))
        weighty = any(line["iteration"] <= FIRST for line in new) or files.evaluated(new)  # what findings are made of
        return News(frozenset({"state", *(changed & {SAMPLES, GROUPS}), *(["evaluation"] if weighty else [])}), new)

    def _worded(self, config: Config, record: Record) -> str:
        """Say in a sentence how far the run is, and whether it goes on."""
        lines, total = self._tail.lines, config.iterations
        done = lines[-1]["iteration"] if lines else 0
        if record.ended == "diverged":
            return f"Ended after {done:,} of {total:,} iterations: the loss or the gradient was not finite."
        if record.ended == "finished":
            return f"Finished after {done:,} iterations."
        if self._seen["owner"] is None:
            return f"Stopped after {done:,} of {total:,} iterations. To resume it: {files.resume_command(self.run)}"
        if not lines:
            return WAITING
        seconds = [files.training_seconds(line) for line in lines[-_RECENT:] if line["iteration"] > 0]
        pace = f", {sum(seconds) / len(seconds):.3g} s each without evaluations" if seconds else ""
        return f"It trains: {done:,} of {total:,} iterations are done{pace}."


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what changes with a file, or with the entries of a folder; None where it is missing."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
