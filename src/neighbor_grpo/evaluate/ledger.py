"""The scores of an evaluation, one line of a file for each: what is written is not computed again."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def short(identity: Mapping[str, Any]) -> str:
    """A scorer's settings as a few letters: another setting is another score."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:12]


class Ledger:
    """Lines {measure, scorer, prompt, values: [S], reasons} in <folder>/scores-<rank>.jsonl; every rank writes its own."""

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder, self.own = folder, folder / f"scores-{rank}.jsonl"
        self.lines: dict[tuple[str, str, int], dict] = {}
        if self.own.is_file() and not self.own.read_bytes().endswith(b"\n"):  # cut off by a kill
            with self.own.open("a") as file:
                file.write("\n")
        self.read()

    def read(self) -> None:
        """Take up what all ranks have written; of two lines on the same the later one, a line cut off by a kill left out."""
        for file in sorted(self.folder.glob("scores-*.jsonl"), key=lambda path: path.stat().st_mtime_ns):
            for text in file.read_text(encoding="utf-8").splitlines():
                try:
                    line = json.loads(text)
                except json.JSONDecodeError:
                    continue
                key = (line["measure"], line["scorer"], line["prompt"])
                if not self.done(*key):
                    self.lines[key] = line

    def done(self, measure: str, scorer: str, prompt: int) -> bool:
        """Whether every picture of a prompt has a score."""
        line = self.lines.get((measure, scorer, prompt))
        return line is not None and None not in line["values"]

    def write(self, measure: str, scorer: str, prompt: int, values: Sequence[float | None], reasons: Mapping[int, str]) -> None:
        """values: None where there is no score, with the reason by place."""
        line = {"measure": measure, "scorer": scorer, "prompt": prompt, "values": list(values), "reasons": dict(reasons)}
        self.lines[measure, scorer, prompt] = line
        with self.own.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def table(self, measure: str, scorer: str, prompts: int) -> tuple[np.ndarray, list[str]]:
        """Values [P, S], NaN where there is none, and the reasons."""
        lines = [self.lines[measure, scorer, p] for p in range(prompts)]
        values = [[np.nan if value is None else value for value in line["values"]] for line in lines]
        return np.array(values, dtype=float), [reason for line in lines for reason in line["reasons"].values()]
