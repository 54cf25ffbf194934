"""The tables of a comparison: final measures, and the cost of reaching a target reward; as cells and as CSV."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neighbor_grpo.compare.rows import COSTS, Reached, Row
from neighbor_grpo.compare.settings import Comparison, Rise
from neighbor_grpo.errors import UserError


@dataclass(frozen=True)
class Target:
    """Hold the reward whose cost is reported, and how it was chosen."""

    reward: float
    text: str


def target(rows: Sequence[Row], comparison: Comparison) -> Target:
    """Choose the reward whose cost is reported: a number, so many times its start, or the highest of a run named by `reach`.

    The highest is that within the bounds.  Without names, or if no named run is finished and starts within the bounds, all
    rows count.
    """
    reach = comparison.reach
    if isinstance(reach, float):
        return Target(reach, f"{reach:g}")
    if isinstance(reach, Rise):
        level = rows[0].level(reach)
        return Target(level, f"{level:.4g}, {reach.times:g} times that before training")
    names = [reach] if isinstance(reach, str) else reach or []
    kept = [row for row in rows if row.kept]
    if not kept:
        raise UserError("no run keeps the bounds, not even before training: choose wider ones")
    best = max([row for row in kept if row.name in names] or kept, key=lambda row: row.highest)
    where = "within the bounds" if comparison.bounds else "at most"
    return Target(best.highest, f"{best.highest:.4g}, which {best.name} reaches {where}")


def other_measures(rows: Sequence[Row]) -> list[str]:
    """Return the measures that differ from the trained reward."""
    measures = rows[0].measures
    return [name for name in measures if not np.array_equal(measures[name], measures["reward"], equal_nan=True)]


def shown_measures(rows: Sequence[Row]) -> list[str]:
    """Return the measures of the tables: the trained reward under its own name where it is one reward with weight 1."""
    names = list(rows[0].measures)
    return names if len(other_measures(rows)) == len(names) - 1 else [name for name in names if name != "reward"]


def final_table(rows: Sequence[Row]) -> list[list[str]]:
    """Write costs and final measures: a head, the values before training, then a row for each method."""
    names = shown_measures(rows)
    frozen = any(row.nfe.frozen for row in rows)
    head = ["run", "lr", "seeds", "NFE_old", "(as papers count)", "NFE_θ", *(["NFE_frozen"] if frozen else [])]
    head += ["s/iter", "iterations", "evaluations"]
    before = [f"{rows[0].measures[name][:, 0].mean():.4g}" for name in names]
    table = [[*head, *names], ["before training", *[""] * (len(head) - 1), *before]]
    for row in rows:
        cells = [
            row.name,
            f"{row.lr:g}",
            f"{len(row.runs)}" + (f" ({row.diverged} diverged)" if row.diverged else ""),
            f"{row.nfe.old:.3g}",
            f"{row.nfe.nominal:.3g}",
            f"{row.nfe.theta:.3g}",
            *([f"{row.nfe.frozen:.3g}"] if frozen else []),
            f"{row.seconds_per_iteration:.2f}",
            f"{row.costs['iterations'][:, -1].mean():.0f}",
            f"{row.costs['evaluations'][:, -1].mean():,.0f}",
        ]
        table.append(cells + ["{:.4g} ± {:.2g}".format(*row.final(name)) for name in names])
    return table


def reach_table(rows: Sequence[Row], reward: float) -> list[list[str]]:
    """Write the cost of reaching a reward, the measures at that point, and the highest reward, all within the bounds."""
    names = shown_measures(rows)
    table = [["run", "highest", *COSTS, *names]]
    for row in rows:
        reached = {cost: row.cost_to_reach(reward, cost) for cost in COSTS}
        then = row.measured_at(reached["evaluations"].by_mean)
        values = [then[name] for name in names]
        highest = f"{row.highest:.4g}" if row.kept else ""
        table.append([row.name, highest, *map(_words, reached.values()), *("" if v is None else f"{v:.4g}" for v in values)])
    return table


def _words(reached: Reached) -> str:
    """Write a cost: by the mean over seeds, then (by the first seed – by the last seed) to reach the reward."""
    costs = sorted(value for value in reached.by_seeds if value is not None)
    text = "not reached" if reached.by_mean is None else f"{reached.by_mean:,.0f}"
    if not costs:
        return text
    missing = len(reached.by_seeds) - len(costs)
    return f"{text} ({costs[0]:,.0f} – {f'not by {missing}' if missing else f'{costs[-1]:,.0f}'})"


def records(rows: Sequence[Row], reward: float) -> list[dict[str, Any]]:
    """Return both tables as numbers: a record for each method."""
    table = []
    for row in rows:
        record: dict[str, Any] = {
            "run": row.name,
            "method": row.method,
            "lr": row.lr,
            "seeds": len(row.runs),
            "diverged": row.diverged,
            "nfe_old": row.nfe.old,
            "nfe_nominal": row.nfe.nominal,
            "nfe_theta": row.nfe.theta,
            "nfe_frozen": row.nfe.frozen,
            "seconds_per_iteration": row.seconds_per_iteration,
        }
        record |= {cost: float(row.costs[cost][:, -1].mean()) for cost in COSTS}
        for name in row.measures:
            record[name], record[f"{name}_std"] = row.final(name)
        reached = {cost: row.cost_to_reach(reward, cost).by_mean for cost in COSTS}
        record |= {f"{cost}_to_reach": value for cost, value in reached.items()}
        record |= {"highest": row.highest if row.kept else None}
        record |= {f"{name}_then": value for name, value in row.measured_at(reached["evaluations"]).items()}
        table.append(record)
    return table


def as_csv(table: Sequence[dict[str, Any]]) -> str:
    """Write records as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()
