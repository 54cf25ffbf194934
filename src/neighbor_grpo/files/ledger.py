"""The ledger of an evaluation: a file with the values of every prompt, so that nothing is measured twice."""

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from neighbor_grpo.files import atomic


def short_hash(identity: Mapping[str, Any]) -> str:
    """Return a short name for a scorer with its settings: other settings, another name."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Values:
    """Hold what one measure says of one prompt's pictures."""

    values: tuple[float | None, ...]  # of each picture, None without a score; one number where the measure gives only one
    reasons: Mapping[int, str] = field(default_factory=dict)  # why a value is missing, by the picture's place

    @property
    def complete(self) -> bool:
        """Return whether no value is missing."""
        return None not in self.values


@dataclass(frozen=True)
class Table:
    """Hold what one measure says of all prompts."""

    values: np.ndarray  # [P, S], NaN without a score; [P, 1] where the measure gives one number for each prompt
    reasons: tuple[str, ...]  # why values are missing


def _crc(line: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(line).encode())


class Ledger:
    """Keep values in `folder`/scores-<rank>.jsonl; every rank reads all files and writes its own.

    A line is {measure, scorer, prompt, values, reasons, crc}: `scorer` names the scorer's settings, `prompt` is a number.  A
    line that was cut off by a kill, or damaged later, counts as missing: its values are measured again.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder, self.own = folder, folder / f"scores-{rank}.jsonl"
        self.entries: dict[tuple[str, str, int], Values] = {}
        for line in self._lines():
            if not self.complete(line["measure"], line["scorer"], line["prompt"]):
                reasons = {int(place): reason for place, reason in line["reasons"].items()}
                self.entries[line["measure"], line["scorer"], line["prompt"]] = Values(tuple(line["values"]), reasons)

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Read the whole lines of all ranks, the oldest file first."""
        for file in sorted(self.folder.glob("scores-*.jsonl"), key=lambda path: path.stat().st_mtime_ns):
            for text in file.read_bytes().split(b"\n")[:-1]:
                try:
                    line = json.loads(text)
                    if line.pop("crc") == _crc(line):
                        yield line
                except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
                    continue

    def complete(self, measure: str, scorer: str, prompt: int) -> bool:
        """Return whether every picture of a prompt has a value."""
        entry = self.entries.get((measure, scorer, prompt))
        return entry is not None and entry.complete

    def write(self, measure: str, scorer: str, prompt: int, entry: Values) -> None:
        """Add the values of one prompt."""
        self.entries[measure, scorer, prompt] = entry
        line = {"measure": measure, "scorer": scorer, "prompt": prompt, "values": entry.values, "reasons": entry.reasons}
        line = json.loads(json.dumps(line))  # as it will be read
        atomic.append(self.own, json.dumps(line | {"crc": _crc(line)}))

    def has(self, measure: str, scorer: str, prompts: int) -> bool:
        """Return whether the measure was taken of all prompts, with or without success."""
        return all((measure, scorer, prompt) in self.entries for prompt in range(prompts))

    def table(self, measure: str, scorer: str, prompts: int) -> Table:
        """Collect the values of all prompts; `has` must be true."""
        entries = [self.entries[measure, scorer, prompt] for prompt in range(prompts)]
        values = [[np.nan if value is None else value for value in entry.values] for entry in entries]
        return Table(np.array(values, dtype=float), tuple(reason for entry in entries for reason in entry.reasons.values()))
