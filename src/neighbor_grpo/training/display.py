"""How a training run shows itself: a live display on a terminal, one plain line per iteration elsewhere.

Figures are shown by their prefixes, whichever method made them:

    reward/ spread/ failed/   trained rewards of the iteration        eval/    measures of an evaluation
    ratio/                    noise floor and clipped share           time/    seconds by phase
"""

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from typing import IO, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from neighbor_grpo import console

Figures = Mapping[str, float]


class Display:
    """Show nothing: the display of ranks other than the main one, and what the others have in common."""

    def __enter__(self) -> Self:
        """Begin to show."""
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the terminal as it was."""

    def before(self, figures: Figures) -> None:
        """Take the evaluation before training: changes are counted from it."""

    def phase(self, name: str) -> None:
        """Show what the run is doing now: encode, rollout, decode, reward, update or evaluate."""

    def iteration(self, done: int, total: int, figures: Figures, seconds: float) -> None:
        """Show the figures of an iteration; `done` of `total` are finished, each took `seconds` on average."""

    def evaluation(self, iteration: int, figures: Figures) -> None:
        """Show the figures of an evaluation after so many iterations."""

    def say(self, text: str) -> None:
        """Show a text that stays."""


class PlainDisplay(Display):
    """Print a line for every iteration and every evaluation."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def iteration(self, done: int, total: int, figures: Figures, seconds: float) -> None:
        """Print one line."""
        self.say(progress(done, total, figures, seconds))

    def evaluation(self, iteration: int, figures: Figures) -> None:
        """Print one line."""
        self.say(f"iteration {iteration}: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()))

    def say(self, text: str) -> None:
        """Print a text."""
        console.say(text, self.stream)


class LiveDisplay(Display):
    """Draw a bar, the current phase and a table of the figures, and redraw them in place."""

    def __init__(self, terminal: Console) -> None:
        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), "{task.fields[pace]}")
        self.terminal, self.bar = terminal, Progress(*columns, console=terminal)
        self.task: TaskID = self.bar.add_task("starting", total=None, pace="")
        self.first: Figures = {}  # the evaluation before training
        self.evaluated: Figures = {}
        self.latest: Figures = {}
        self.live = Live(console=terminal, get_renderable=self._drawn, refresh_per_second=4)
        self.open = ExitStack()

    def __enter__(self) -> Self:
        """Begin to draw."""
        self.open.enter_context(console.drawing())
        self.open.enter_context(self.live)
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the last state on the terminal."""
        self.open.close()

    def before(self, figures: Figures) -> None:
        """Take the evaluation before training."""
        self.first = figures

    def phase(self, name: str) -> None:
        """Name the phase beside the bar."""
        self.bar.update(self.task, description=name)

    def iteration(self, done: int, total: int, figures: Figures, seconds: float) -> None:
        """Advance the bar and redraw the table."""
        self.latest = figures
        self.bar.update(self.task, completed=done, total=total, pace=f"{seconds:.2f} s/it")

    def evaluation(self, iteration: int, figures: Figures) -> None:
        """Redraw the measures with their change since the first evaluation."""
        self.first, self.evaluated = self.first or figures, figures

    def say(self, text: str) -> None:
        """Print a text above the display."""
        self.terminal.print(console.safe_lines(text), markup=False, highlight=False)

    def _drawn(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for name, value, more in (*_rewards(self.latest), *_measures(self.first, self.evaluated), *_ratios(self.latest)):
            table.add_row(*map(Text, (name, value, more)))  # not markup: a name may have brackets
        return Group(self.bar, table)


def display_of(main: bool, stream: IO[str] | None = None) -> Display:
    """Return the display for a stream, by default stdout; on a rank that is not the main one nothing is shown."""
    stream = stream or sys.stdout
    if not main:
        return Display()
    return LiveDisplay(Console(file=stream)) if console.is_live(stream) else PlainDisplay(stream)


# ---------------------------------------------------------------- figures in words


def _named(figures: Figures, prefix: str) -> dict[str, float]:
    """Return the figures with a prefix, by what follows it."""
    return {key.removeprefix(prefix): value for key, value in figures.items() if key.startswith(prefix)}


def _rewards(figures: Figures) -> list[tuple[str, str, str]]:
    """Return (name, value, more) of each trained reward."""
    rows = []
    for name, value in _named(figures, "reward/").items():
        more = f"±{figures[f'spread/{name}']:.3f}" if f"spread/{name}" in figures else ""
        failed = figures.get(f"failed/{name}", 0)
        rows.append((name, f"{value:.4f}", more + (f" ({failed:.0f} not scored)" if failed else "")))
    return rows


def _measures(first: Figures, figures: Figures) -> list[tuple[str, str, str]]:
    """Return (name, value, change since the first evaluation) of each measure."""
    before = _named(first, "eval/")
    return [
        (f"eval {name}", f"{value:.4g}", f"{value - before[name]:+.3g}" if name in before else "")
        for name, value in _named(figures, "eval/").items()
    ]


def _ratios(figures: Figures) -> list[tuple[str, str, str]]:
    return [(name.replace("_", " "), f"{value:.2g}", "") for name, value in _named(figures, "ratio/").items()]


def progress(done: int, total: int, figures: Figures, seconds: float) -> str:
    """Return an iteration as one line; `seconds`: of an iteration, on average."""
    phases = " ".join(f"{name} {value:.2f}" for name, value in _named(figures, "time/").items())
    left = int(seconds * (total - done))
    parts = [
        f"{done}/{total}",
        " ".join(" ".join(filter(None, row)) for row in _rewards(figures)),
        f"clipped {figures['ratio/clipped']:.2f}" if "ratio/clipped" in figures else "",
        f"|g| {figures['grad_norm']:.2g}" if "grad_norm" in figures else "",
        f"{seconds:.2f} s/it ({phases})",
        f"ETA {left // 60}:{left % 60:02d}",
    ]
    return "  ".join(filter(None, parts))
