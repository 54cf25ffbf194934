"""The report of a comparison: table.md, table.csv, results.json, curves.png, pictures.png and one self-contained page."""

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neighbor_grpo.compare.rows import COSTS, Row, read_row
from neighbor_grpo.compare.settings import Comparison, Entry
from neighbor_grpo.compare.tables import as_csv, final_table, other_measures, reach_table, records, target
from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic
from neighbor_grpo.files.frames import gallery
from neighbor_grpo.run.pages import data_url, markdown_table, render
from neighbor_grpo.run.samples import all_samples

_PAGE = Path(__file__).parent / "page.html"


def write(comparison: Comparison, entries: Sequence[Entry]) -> Path:
    """Write the report of all finished runs and return its page.  Raises UserError where no run is finished."""
    rows = [row for entry in entries if (row := read_row(entry, comparison))]
    directory = Path(comparison.run_dir)
    if not rows:
        raise UserError(f"no run in {directory} is finished: run the other parts first")
    goal = target(rows, comparison)
    final, reach, table = final_table(rows), reach_table(rows, goal.reward), records(rows, goal.reward)
    bounds = _bounds_text(rows[0].limits)
    costs = (
        f"Cost to reach a reward of {goal.text}, by the mean over seeds (by the first seed – by the last seed), and the "
        f"measures at that point{bounds}:"
    )
    text = f"{markdown_table(final)}\n{costs}\n\n{markdown_table(reach)}"
    atomic.write(directory / "table.md", text)
    atomic.write(directory / "table.csv", as_csv(table))
    series = {row.name: {name: values.tolist() for name, values in {**row.costs, **row.measures}.items()} for row in rows}
    results = {"settings": comparison.model_dump(mode="json"), "table": table, "curves": series}
    atomic.write(directory / "results.json", json.dumps(results, indent=1) + "\n")
    draw_curves(rows, goal.reward, directory / "curves.png")
    pictures = draw_pictures(rows, directory / "pictures.png")
    page = {
        "title": directory.name,
        "tables": [final, reach],
        "target": goal.text,
        "bounds": bounds,
        "curves": data_url(directory / "curves.png"),
        "pictures": data_url(directory / "pictures.png") if pictures else "",
        "settings": (directory / "comparison.yaml").read_text(encoding="utf-8"),
        "missing": _missing(rows, comparison, entries),
    }
    atomic.write(directory / "report.html", render(_PAGE, page))
    return directory / "report.html"


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


def draw_curves(rows: Sequence[Row], reward: float, file: Path) -> None:
    """Draw the trained reward against each cost and each bounded measure, then each other measure against evaluations.

    Bands are ± one std.  A bounded measure has its bounds; a curve beyond them does not count.
    """
    limits = rows[0].limits
    panels = [("reward", x) for x in (*COSTS, *limits)] + [(name, "evaluations") for name in other_measures(rows)]
    height = -(-len(panels) // 3)
    figure = Figure(figsize=(13.5, 3.6 * height), layout="constrained")
    axes = figure.subplots(height, 3, squeeze=False).flatten()
    for axis, (name, x) in zip(axes, panels, strict=False):
        draw_panel(axis, rows, name, x)
        if name == "reward":
            axis.axhline(reward, color="gray", lw=0.8, ls=":")
        for limit in limits.get(x, ()):
            if isfinite(limit):
                axis.axvline(limit, color="gray", lw=0.8, ls=":")
    for axis in axes[len(panels) :]:
        axis.axis("off")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(rows), 6), fontsize=8)
    with atomic.writing(file) as aside:
        figure.savefig(aside, dpi=110, format="png")


def draw_panel(axis: Axes, rows: Sequence[Row], name: str, against: str) -> None:
    """Draw a measure of all methods against a cost or another measure."""
    for n, row in enumerate(rows):
        x = {**row.measures, **row.costs}[against].mean(0)
        y = row.measures[name]
        line = axis.plot(x, y.mean(0), marker=".", lw=1.2, ls="-" if n < 10 else "--", label=row.name)[0]
        if len(y) > 1 and against in row.costs:
            around = y.std(0, ddof=1)
            axis.fill_between(x, y.mean(0) - around, y.mean(0) + around, alpha=0.12, lw=0, color=line.get_color())
    axis.set_title(name, fontsize=10)
    axis.set_xlabel("seconds of training" if against == "seconds" else against, fontsize=8)
    axis.grid(alpha=0.3)


def draw_pictures(rows: Sequence[Row], file: Path) -> bool:
    """Draw the same prompts and noise before training and after each method's first seed; return whether there are any."""
    first = {row.name: all_samples(row.runs[0]) for row in rows}
    before = next((found[0] for found in first.values() if found), None)
    if before is None:
        return False
    after = {name: found[-1] for name, found in first.items() if found and found[-1].prompts == before.prompts}
    columns = {name: [row[:2] for row in found.frames()] for name, found in {"before": before, **after}.items()}
    with atomic.writing(file) as aside:
        gallery(columns, before.prompts).save(aside, "PNG")
    return True
