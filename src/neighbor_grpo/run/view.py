"""What the page of a run shows, from the run's files; without torch, so that a page can be made while the run goes on."""

import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from neighbor_grpo.config import Config, method_name
from neighbor_grpo.config.keys import written
from neighbor_grpo.config.reading import parse
from neighbor_grpo.run import curves, files
from neighbor_grpo.run.files import Change, Figures
from neighbor_grpo.run.findings import FIRST, Finding, early
from neighbor_grpo.run.groups import KeptGroup, read_groups
from neighbor_grpo.run.history import History
from neighbor_grpo.run.outcome import drift, hacking, throughput
from neighbor_grpo.run.pages import macro
from neighbor_grpo.run.record import CONFIG, Record, describe_changes, read_record
from neighbor_grpo.run.samples import Samples, all_samples

_SUMMED = ("time/", "failed/", "eval_failed/")
PARTS = ("outcome", "pictures", "groups", "time", "settings")  # macros of run.html, each a part of the page of one run


@dataclass
class Totals:
    """Add up figures over lines, as they come: times, pictures without a score."""

    figures: Counter[str] = field(default_factory=Counter)

    def add(self, lines: Iterable[Figures]) -> "Totals":
        """Add lines."""
        for line in lines:
            for key, value in line.items():
                if key.startswith(_SUMMED):
                    self.figures[key] += value
        return self

    def of(self, *prefixes: str) -> dict[str, float]:
        """Return the sums of the figures with these prefixes, by the rest of their names."""
        found: Counter[str] = Counter()
        for key, value in self.figures.items():
            if key.startswith(prefixes):
                found[key.split("/", 1)[1]] += value
        return dict(found)


@dataclass(frozen=True)
class View:
    """Hold what a run has written, and say what its page shows of it."""

    run: Path
    name: str
    config: Config
    record: Record
    lines: Sequence[Figures]
    totals: Totals
    state: str  # how far it is, in a sentence

    # ---------------------------------------------------------------- overview

    @property
    def base(self) -> int:
        """Return the iteration whose evaluation later ones are compared with."""
        return self.record.base

    @property
    def table(self) -> list[Change]:
        """Return the measures before and after training."""
        return files.changes(self.lines, self.base)

    @property
    def failed(self) -> str:
        """Name the rewards that could not score pictures, with how many."""
        failed = self.totals.of("failed/", "eval_failed/")
        return ", ".join(f"{name} {count:.0f}" for name, count in failed.items() if count)

    @cached_property
    def _history(self) -> History:
        return History(self.run, self.config, self.lines)

    @cached_property
    def _outcome(self) -> list[Finding]:
        return [*hacking(self._history), *drift(self._history)] if len(self._history.evaluations) > 1 else []

    @property
    def findings(self) -> list[Finding]:
        """Return what is wrong: in the first iterations, with the time, with watched measures."""
        first = [finding for line in self.lines if 0 < line["iteration"] <= FIRST for finding in early(line, self.config)]
        late = throughput(self._history) if self._history.steps else ()
        found = {finding.name: finding for finding in (*first, *self._outcome, *late)}
        return [finding for finding in found.values() if finding.verdict != "ok"]

    @property
    def told(self) -> list[str]:
        """Say what became of the watched measures and the diversity."""
        return [finding.text for finding in self._outcome]

    # ---------------------------------------------------------------- pictures

    @cached_property
    def _samples(self) -> list[Samples]:
        return all_samples(self.run)

    @property
    def between(self) -> list[str]:
        """Return what the pictures of a prompt are called, for instance before, and after 300 iterations."""
        return [one.title for one in self._samples]

    @property
    def prompts(self) -> list[dict[str, Any]]:
        """Return {text, seeds}, for each seed its first and its last picture."""
        texts = self._samples[0].prompts if self._samples else []
        rows = [list(zip(*(one.files[p] for one in self._samples), strict=True)) for p in range(len(texts))]
        return [{"text": text, "seeds": row} for text, row in zip(texts, rows, strict=True)]

    @cached_property
    def groups(self) -> list[dict[str, Any]]:
        """Return the first and the last group that was kept."""
        ends = [next(read_groups(self.run, newest_first), None) for newest_first in (False, True)]
        found = {group.iteration: group for group in ends if group}
        return [{"iteration": n, "prompt": group.prompt, "members": list(_members(group))} for n, group in found.items()]

    @property
    def pictures(self) -> list[Path]:
        """List the files of all pictures of the page."""
        groups = [member["file"] for group in self.groups for member in group["members"]]
        return [file for prompt in self.prompts for pair in prompt["seeds"] for file in pair] + groups

    # ---------------------------------------------------------------- time and settings

    @property
    def phases(self) -> list[dict[str, Any]]:
        """Return {name, value, text} of each phase: the seconds that the run has spent in it."""
        seconds = self.totals.of("time/")
        return [{"name": name, "value": value, "text": f"{value:,.1f} s"} for name, value in seconds.items()]

    @property
    def differences(self) -> list[dict[str, str]]:
        """Return {key, value, default} of each setting that is not its default."""
        found = [one for one in self.config.differences() if one.key != "run_dir"]
        return [{"key": one.key, "value": written(one.value), "default": written(one.default)} for one in found]

    @property
    def command(self) -> str:
        """Return the command that begins the run again, without its files."""
        return again(self.config)

    @property
    def changes(self) -> list[str]:
        """Word each change of settings."""
        return describe_changes(self.record.changes)

    @property
    def settings(self) -> str:
        """Return all settings, as the run's configuration has them."""
        return (self.run / CONFIG).read_text(encoding="utf-8")

    @property
    def plan(self) -> str:
        """Return the plan that was printed before the run."""
        return files.read_plan(self.run)

    # ---------------------------------------------------------------- curves

    @property
    def against(self) -> list[curves.Panel]:
        """Return the panels of the trained and the watched measures."""
        evaluations = self._history.evaluations
        return curves.thinned(curves.against(evaluations, list(self.config.reward.train), self.config.watched))

    def parts(self, src: Callable[[Path], str]) -> dict[str, str]:
        """Write each part of the page; src: the address of a picture."""
        return {name: self.part(name, src) for name in PARTS}

    def part(self, name: str, src: Callable[[Path], str]) -> str:
        """Write one part of the page."""
        return macro("run.html", name)(self, src)


def read_view(run: Path) -> View:
    """Read the files of a run.  Raises UserError where there is no run, or a file of it is damaged."""
    config, record, lines = files.read_config(run), read_record(run), files.read_metrics(run)
    done = lines[-1]["iteration"] if lines else 0
    ending = ", then the loss or the gradient was not finite" if record.ended == "diverged" else ""
    state = f"{done:,} of {config.iterations:,} iterations{ending}."
    return View(run, run.name, config, record, lines, Totals().add(lines), state)


def again(config: Config) -> str:
    """Return the command of a run with these settings, in another directory: all that differs from the defaults."""
    changed = [one for one in config.differences() if one.key not in ("run_dir", "method.name")]
    method = {"method.name": method_name(config.method)}
    values = method | {one.key: one.value for one in changed}
    return shlex.join(["neighbor-grpo", "train", *(f"{key}={_argument(value)}" for key, value in values.items())])


def _argument(value: Any) -> str:
    """Write a value as the command line reads it: a text that would be read as something else in quotes."""
    return json.dumps(value) if isinstance(value, str) and parse(value, "a value") != value else written(value)


def _members(group: KeptGroup) -> Iterator[dict[str, Any]]:
    """Yield {file, texts, share} of each sample of a group; share: its advantage over the largest one, None without."""
    largest = max((abs(value) for value in group.advantages or ()), default=0) or 1
    for n, file in enumerate(group.files):
        scores = [f"{name} {'no score' if row[n] is None else f'{row[n]:.4g}'}" for name, row in group.rewards.items()]
        advantage = None if group.advantages is None else group.advantages[n]
        texts = [*scores, *([] if advantage is None else [f"advantage {advantage:+.3g}"])]
        yield {"file": file, "texts": texts, "share": None if advantage is None else advantage / largest}
