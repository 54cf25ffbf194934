"""The curves of a comparison's page: panels as charts.js draws them, and the reward against each other measure.

A curve is the mean over seeds; its band is ± one std.
"""

from collections.abc import Iterator, Sequence
from math import floor, isfinite, log10
from typing import Any

import numpy as np

from neighbor_grpo.compare.rows import Row
from neighbor_grpo.compare.tables import other_measures
from neighbor_grpo.run.curves import drawable

REFERENCE = 15  # tone of what a curve is compared with: gray and dashed
WIDTH, HEIGHT, LEFT, BELOW = 340, 220, 48, 34  # pixels of a drawing, and of its margins with numbers


def panels(rows: Sequence[Row], cost: str, goal: float) -> list[dict[str, Any]]:
    """Return a panel for the reward, with the one to reach, and for each other measure, with its bounds, against a cost."""
    return [_panel(rows, name, cost, goal) for name in ("reward", *other_measures(rows))]


def _panel(rows: Sequence[Row], name: str, cost: str, goal: float) -> dict[str, Any]:
    end = max(float(row.costs[cost].mean(0)[-1]) for row in rows)
    levels = {"to reach": goal} if name == "reward" else bounds(rows, name)
    lines = [_line(row, name, cost, n) for n, row in enumerate(rows)]
    lines += [
        {"label": label, "tone": REFERENCE, "faint": False, "x": [0, end], "y": [level, level], "low": None, "high": None}
        for label, level in levels.items()
    ]
    return {"title": name, "across": "seconds of training" if cost == "seconds" else cost, "lines": lines}


def _line(row: Row, name: str, cost: str, tone: int) -> dict[str, Any]:
    values = row.measures[name]
    mean, std = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else None
    return {
        "label": row.name,
        "tone": tone,
        "faint": False,
        "x": _drawable(row.costs[cost].mean(0)),
        "y": _drawable(mean),
        "low": None if std is None else _drawable(mean - std),
        "high": None if std is None else _drawable(mean + std),
    }


def bounds(rows: Sequence[Row], name: str) -> dict[str, float]:
    """Return the finite bounds of a measure in words and numbers; none of one that is not bounded."""
    pair = zip((">=", "<="), rows[0].limits.get(name, ()), strict=False)
    return {f"bound {sign} {limit:.4g}": limit for sign, limit in pair if isfinite(limit)}


def _drawable(values: np.ndarray) -> list[float | None]:
    return [drawable(value) for value in values.tolist()]


# ---------------------------------------------------------------- reward against damage


def drawings(rows: Sequence[Row], trained: Sequence[str]) -> list[dict[str, Any]]:
    """Return the reward against each measure that is not trained on, those with bounds first: what compare/page.html draws."""
    names = [name for name in other_measures(rows) if name not in trained]
    return [_drawing(rows, name) for name in sorted(names, key=lambda name: name not in rows[0].limits)]


def _drawing(rows: Sequence[Row], name: str) -> dict[str, Any]:
    across, up = ([row.measures[key].mean(0) for row in rows] for key in (name, "reward"))
    limits = bounds(rows, name)
    x = _Axis(np.concatenate([*across, list(limits.values())]), LEFT, WIDTH - 8)
    y = _Axis(np.concatenate(up), HEIGHT - BELOW, 8)
    lines = []
    for n, row in enumerate(rows):
        whole = [(x(a), y(b)) for a, b in zip(across[n], up[n], strict=True) if isfinite(a) and isfinite(b)]
        lines.append({"name": row.name, "tone": n, "points": whole, "dots": list(_dots(row, name, x, y))})
    return {
        "name": name,
        "x": [(x(value), f"{value:.4g}") for value in x.ticks()],
        "y": [(y(value), f"{value:.4g}") for value in y.ticks()],
        "limits": [(x(value), label) for label, value in limits.items()],
        "lines": lines,
    }


def _dots(row: Row, name: str, x: "_Axis", y: "_Axis") -> Iterator[dict[str, Any]]:
    """Yield each evaluation of a method: its place, what it says, and whether it is within the bounds."""
    columns = zip(row.measures[name].mean(0), row.measures["reward"].mean(0), row.costs["evaluations"].mean(0), strict=True)
    for point, (a, b, cost) in enumerate(columns):
        if isfinite(a) and isfinite(b):
            text = f"{row.name} after {cost:,.0f} evaluations: reward {b:.4g}, {name} {a:.4g}"
            yield {"x": x(a), "y": y(b), "text": text, "kept": point < int(row.kept)}


class _Axis:
    """Turn values into pixels, from the lowest at `begin` to the highest at `end`."""

    def __init__(self, values: np.ndarray, begin: int, end: int) -> None:
        known = values[np.isfinite(values)]
        self.low, self.high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        if self.low == self.high:
            self.low, self.high = self.low - 0.5, self.high + 0.5
        self.begin, self.end = begin, end

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.begin + float(share) * (self.end - self.begin), 1)

    def ticks(self) -> list[float]:
        """Return three to six round numbers."""
        size = 10 ** floor(log10((self.high - self.low) / 2))
        step = next(step for step in (size, 2 * size, 5 * size, 10 * size) if (self.high - self.low) / step <= 5)
        return [n * step for n in range(-floor(-self.low / step), floor(self.high / step) + 1)]
