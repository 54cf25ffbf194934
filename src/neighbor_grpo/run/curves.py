"""The curves of a page: panels of lines, as charts.js draws them, from the lines of metrics.jsonl.

A panel is {title, lines}, a line {label, tone, faint, x, y, low, high}: numbers of one measure against iterations, with the
edges of a band or None.  Lines of several runs lie in the same panels.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from neighbor_grpo.run.files import Figures

Panel = dict[str, Any]
Line = dict[str, Any]
PARTS = 250  # of a long line, of each of which the extremes are drawn
_SCORED = ("reward/", "eval/")  # figures of a measure, drawn together under its name
# Figures that are not drawn on their own: details of the scores, costs, and the counter.  All others are the method's.
_NOT_DRAWN = ("spread/", "failed/", "flat_groups/", "eval_spread/", "eval_failed/", "time/", "mfu/", "scorer/", "nfe_")
_NOT_DRAWN_KEYS = ("lr", "iteration")


def panels(lines: Sequence[Figures]) -> list[str]:
    """Return what is drawn: each measure by name, then each figure of the method by key."""
    keys = dict.fromkeys(key for line in lines for key in line)
    measures = dict.fromkeys(key.split("/", 1)[1] for key in keys if key.startswith(_SCORED))
    others = [key for key in keys if not key.startswith(_SCORED + _NOT_DRAWN) and key not in _NOT_DRAWN_KEYS]
    return [*measures, *others]


def charts(lines: Sequence[Figures], run: str = "", tone: int | None = None) -> list[Panel]:
    """Return a panel for each measure, in training with its spread and in evaluation, and for each other figure.

    run and tone: name and colour of all lines of a run among others; without, training and evaluation differ in colour.
    """
    return [{"title": name, "lines": list(_lines(name, lines, run, tone))} for name in panels(lines)]


def _lines(name: str, lines: Sequence[Figures], run: str, tone: int | None) -> Iterator[Line]:
    """Yield the lines of one panel; values that are not finite leave gaps."""
    kinds = ((f"reward/{name}", "training"), (f"eval/{name}", "evaluation"), (name, "" if run else name))
    for n, (key, kind) in enumerate(kinds):
        held = [line for line in lines if key in line]
        if not held:
            continue
        spread = [line.get(f"spread/{name}") if n == 0 else None for line in held]
        banded = any(value is not None for value in spread)
        pairs = [(line[key], around) for line, around in zip(held, spread, strict=True)]
        yield {
            "label": f"{run} {kind}".strip(),
            "tone": (1 if n == 1 else 0) if tone is None else tone,
            "faint": tone is not None and n == 0,
            "x": [line["iteration"] for line in held],
            "y": [drawable(line[key]) for line in held],
            "low": [drawable(None if around is None else value - around) for value, around in pairs] if banded else None,
            "high": [drawable(None if around is None else value + around) for value, around in pairs] if banded else None,
        }


def overlaid(runs: Iterable[Sequence[Panel]]) -> list[Panel]:
    """Put the lines of several runs into the same panels, by title."""
    found: dict[str, Panel] = {}
    for panel in (panel for run in runs for panel in run):
        found.setdefault(panel["title"], {**panel, "lines": []})["lines"] += panel["lines"]
    return list(found.values())


def thinned(panels: Sequence[Panel]) -> list[Panel]:
    """Leave points of long lines out: of each part the lowest and the highest value stay, and those of its band."""
    return [{**panel, "lines": [_thin(line) for line in panel["lines"]]} for panel in panels]


def is_long(lines: Sequence[Any]) -> bool:
    """Return whether a line of so many points is thinned."""
    return len(lines) > 4 * PARTS


def _thin(line: Line) -> Line:
    if not is_long(line["x"]):
        return line
    kept = {0, len(line["x"]) - 1}
    for key, sign in (("y", 1), ("y", -1), ("low", 1), ("high", -1)):
        if line[key] is not None:
            kept |= _lowest(sign * np.array(line[key], dtype=float))
    return {key: [value[n] for n in sorted(kept)] if isinstance(value, list) else value for key, value in line.items()}


def _lowest(values: np.ndarray) -> set[int]:
    """Return where the lowest value of each part is; a gap, NaN, is none."""
    edges = np.linspace(0, len(values), PARTS + 1).astype(int)
    known = np.where(np.isnan(values), np.inf, values)
    return {int(start + np.argmin(known[start:end])) for start, end in pairwise(edges)}


def drawable(value: float | None) -> float | None:
    """Round to six digits, as many as a chart can show; None for what cannot be drawn."""
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None


# ---------------------------------------------------------------- trained against watched


def against(lines: Sequence[Figures], trained: Sequence[str], watched: Sequence[str], run: str = "") -> list[Panel]:
    """Return how evaluation measures have moved since the first of these lines.

    Rewards in standard deviations over the evaluation pictures at the start, other measures in per cent.
    """
    first = lines[0] if lines else {}
    found: dict[str, list[Line]] = {"rewards, in standard deviations": [], "other measures, in per cent": []}
    kinds = {**dict.fromkeys(watched, "watched"), **dict.fromkeys(trained, "trained")}
    for name, kind in sorted(kinds.items(), key=lambda item: item[1]):  # those trained first
        start, spread = first.get(f"eval/{name}"), first.get(f"eval_spread/{name}")
        scale = spread if spread is not None else abs(start or 0) / 100
        held = [line for line in lines if f"eval/{name}" in line]
        if start is None or not scale:
            continue
        title = list(found)[spread is None]
        y = [drawable((line[f"eval/{name}"] - start) / scale) for line in held]
        label = f"{run} {name} ({kind})".strip()
        x = [line["iteration"] for line in held]
        tone = len(found[title])
        found[title].append({"label": label, "tone": tone, "faint": False, "x": x, "y": y, "low": None, "high": None})
    return [{"title": f"change of {title}", "lines": drawn} for title, drawn in found.items() if drawn]
