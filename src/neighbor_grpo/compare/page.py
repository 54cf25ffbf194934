"""The report of a comparison: table.md, table.csv, results.json and one self-contained page."""

import json
import shlex
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from neighbor_grpo.compare.curves import drawings, panels
from neighbor_grpo.compare.rows import COSTS, Row, read_row
from neighbor_grpo.compare.settings import Comparison, Entry
from neighbor_grpo.compare.tables import Target, as_csv, final_table, reach_table, records, target
from neighbor_grpo.config.keys import written
from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic
from neighbor_grpo.run import files
from neighbor_grpo.run.pages import data_urls, markdown_table, render
from neighbor_grpo.run.record import COMPARISON
from neighbor_grpo.run.samples import Samples, all_samples

_PAGE = Path(__file__).parent / "page.html"
SEEDS = 2  # pictures of a prompt
_OF_A_RUN = ("run_dir", "seed")  # settings in which the seeds of a method differ


def write(comparison: Comparison, entries: Sequence[Entry]) -> Path:
    """Write the report of all finished runs and return its page.  Raises UserError where no run is finished."""
    rows = [row for entry in entries if (row := read_row(entry, comparison))]
    directory = Path(comparison.run_dir)
    if not rows:
        raise UserError(f"no run in {directory} is finished: run the other parts first")
    goal = target(rows, comparison)
    final, reach = write_tables(rows, comparison, goal, directory)
    page = {
        "title": directory.name,
        "tables": [final, reach],
        "target": goal.text,
        "bounds": _bounds_text(rows[0].limits),
        "costs": COSTS,
        "charts": {f"curves-{cost}": panels(rows, cost, goal.reward) for cost in COSTS},
        "drawings": drawings(rows, list(entries[0].config.reward.train)),
        "differences": _differences(rows),
        "command": shlex.join(["neighbor-grpo", "compare", str(directory / COMPARISON), f"run_dir={directory}-again"]),
        "settings": (directory / COMPARISON).read_text(encoding="utf-8"),
        "missing": _missing(rows, comparison, entries),
        **_gallery(pictures_of(rows)),
    }
    atomic.write(directory / "report.html", render(_PAGE, page))
    return directory / "report.html"


def write_tables(
    rows: Sequence[Row], comparison: Comparison, goal: Target, directory: Path
) -> tuple[list[list[str]], list[list[str]]]:
    """Write table.md, table.csv and results.json; return the table of final measures and that of costs."""
    final, reach, table = final_table(rows), reach_table(rows, goal.reward), records(rows, goal.reward)
    costs = (
        f"Cost to reach a reward of {goal.text}, by the mean over seeds (by the first seed – by the last seed), and the "
        f"measures at that point{_bounds_text(rows[0].limits)}:"
    )
    atomic.write(directory / "table.md", f"{markdown_table(final)}\n{costs}\n\n{markdown_table(reach)}")
    atomic.write(directory / "table.csv", as_csv(table))
    series = {row.name: {name: values.tolist() for name, values in {**row.costs, **row.measures}.items()} for row in rows}
    results = {"settings": comparison.model_dump(mode="json"), "table": table, "curves": series}
    atomic.write(directory / "results.json", json.dumps(results, indent=1) + "\n")
    return final, reach


def _bounds_text(limits: Mapping[str, tuple[float, float]]) -> str:
    """Say up to where a run counts."""
    words = [
        f"{name} {sign} {limit:.4g}"
        for name, pair in limits.items()
        for sign, limit in zip((">=", "<="), pair, strict=True)
        if isfinite(limit)
    ]
    return f"; a run counts while {' and '.join(words)}" if words else ""


def _missing(rows: Sequence[Row], comparison: Comparison, entries: Sequence[Entry]) -> list[str]:
    """List the methods with seeds that are not finished."""
    done, seeds = {row.name: len(row.runs) for row in rows}, len(comparison.seeds)
    return [f"{e.name} ({done.get(e.name, 0)} of {seeds} seeds)" for e in entries if done.get(e.name, 0) < seeds]


def _differences(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return {key, value, default, origin} of each setting that is not its default; origin: the methods that have it."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        for one in files.read_config(row.runs[0]).differences():
            if one.key not in _OF_A_RUN:
                found.setdefault((one.key, written(one.value), written(one.default)), []).append(row.name)
    shared = sorted(found.items(), key=lambda item: (len(item[1]) < len(rows), item[0][0]))
    return [
        {"key": key, "value": value, "default": default, "origin": "all" if len(names) == len(rows) else ", ".join(names)}
        for (key, value, default), names in shared
    ]


def pictures_of(rows: Sequence[Row]) -> dict[str, Samples]:
    """Return the pictures before training and after each method's first seed, of the same prompts and noise."""
    first = {row.name: all_samples(row.runs[0]) for row in rows}
    before = next((found[0] for found in first.values() if found), None)
    if before is None:
        return {}
    alike = (before.prompts, before.shape)
    after = {name: found[-1] for name, found in first.items() if found and (found[-1].prompts, found[-1].shape) == alike}
    return {"before": before, **after}


def _gallery(columns: Mapping[str, Samples]) -> dict[str, Any]:
    """Return what the page shows of pictures: for each prompt and seed one of each column."""
    shown = {file for found in columns.values() for row in found.files for file in row[:SEEDS]}
    addresses, compressed = data_urls(sorted(shown))
    prompts: list[dict[str, Any]] = []
    for p, text in enumerate(next(iter(columns.values())).prompts if columns else ()):
        noises = zip(*(found.files[p][:SEEDS] for found in columns.values()), strict=True)
        prompts.append({"text": text, "seeds": [[addresses[file] for file in noise] for noise in noises]})
    return {"columns": list(columns), "prompts": prompts, "compressed": compressed}
