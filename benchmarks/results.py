"""The tables and curves of a comparison again, from its raw numbers.

    python benchmarks/results.py DIR [--picture FILE.png] [--more DIR ...]

DIR holds results.json.  --more takes in the rows of other directories, which were run with the same settings: so a comparison
can be divided over machines that share no disk.  Rewrites table.md, table.csv and results.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from neighbor_grpo.compare.page import write_tables
from neighbor_grpo.compare.rows import COSTS, Nfe, Row
from neighbor_grpo.compare.settings import Comparison
from neighbor_grpo.compare.tables import target

_OF_A_MACHINE = ("run_dir", "methods", "base")  # base: device and batches; the rest of it is compared
_BATCHES = ("device", "batch")


def comparison_of(settings: dict[str, Any]) -> Comparison:
    """Read the settings of results.json."""
    return Comparison.model_validate({key: value for key, value in settings.items() if value is not None})


def row_of(record: dict[str, Any], curves: dict[str, Any], comparison: Comparison) -> Row:
    """Read a row: its record of the table, and its curves [S, points]."""
    series = {name: np.array(values, float) for name, values in curves.items()}
    return Row(
        name=record["run"],
        method=record["method"],
        lr=record["lr"],
        runs=[Path()] * len(series["reward"]),
        diverged=record["diverged"],
        nfe=Nfe(*(record[f"nfe_{name}"] for name in ("old", "nominal", "theta", "frozen"))),
        seconds_per_iteration=record["seconds_per_iteration"],
        costs={name: series.pop(name) for name in COSTS},
        measures=series,
        bounds=comparison.bounds,
    )


def shared(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings in which two parts of a comparison must agree."""
    base = {key: value for key, value in settings["base"].items() if key not in _BATCHES}
    return {key: value for key, value in settings.items() if key not in _OF_A_MACHINE} | {"base": base}


def draw(rows: list[Row], goal: float, picture: Path) -> None:
    """Draw the reward against evaluations and pictures, and against each bounded measure; dotted: what is to be reached."""
    from matplotlib.figure import Figure

    figure, limits = Figure(figsize=(11, 7.2), layout="constrained"), rows[0].limits
    panels = ["evaluations", "pictures", *limits, "seconds", "iterations"][:4]
    for axes, name in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for n, row in enumerate(rows):
            x, y = row.costs.get(name, row.measures.get(name)), row.measures["reward"]
            style = {"color": f"C{n % 10}", "linestyle": "-" if n < 10 else "--"}
            axes.plot(x.mean(0), y.mean(0), marker="o", markersize=3, label=row.name, **style)
            if name in row.costs:
                axes.fill_between(x.mean(0), y.min(0), y.max(0), alpha=0.12, color=style["color"], linewidth=0)
        axes.axhline(goal, color="grey", linestyle=":", linewidth=1)
        for edge in limits.get(name, ()):
            if np.isfinite(edge):
                axes.axvline(edge, color="grey", linestyle=":", linewidth=1)
        axes.set(xlabel=name, ylabel="reward")
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    figure.savefig(picture, dpi=110)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--more", type=Path, nargs="+", default=[], metavar="DIR")
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    parts = [json.loads((place / "results.json").read_text()) for place in (arguments.directory, *arguments.more)]
    settings = parts[0]["settings"]
    for place, part in zip(arguments.more, parts[1:], strict=True):
        differing = [key for key, value in shared(settings).items() if shared(part["settings"])[key] != value]
        if differing:
            parser.error(f"{place} was run with other settings: {', '.join(differing)}")
    comparison = comparison_of(settings)
    found = {
        record["run"]: row_of(record, part["curves"][record["run"]], comparison) for part in parts for record in part["table"]
    }
    rows = [found[method["run"]] for method in settings["methods"] if method["run"] in found]
    goal = target(rows, comparison)
    write_tables(rows, comparison, goal, arguments.directory)
    print((arguments.directory / "table.md").read_text())
    if arguments.picture:
        draw(rows, goal.reward, arguments.picture)


if __name__ == "__main__":
    main()
