"""Strict correctness of the bundled model against its cost: the long runs, and the runs of 100,000 evaluations.

python benchmarks/wall.py          # print the tables and draw docs/strict.png from the kept figures
python benchmarks/wall.py FOLDER   # first keep the evaluated lines of all runs below FOLDER, by their paths in it

benchmarks/results/wall/runs.json holds {run: [line, ...]}: each line has the costs up to there and two measures of the
evaluation prompts.  short/NAME/seed-N are the seeds of the row NAME of benchmarks/wall.yaml, and long/NAME are single runs.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

from neighbor_grpo.compare.rows import COSTS, evaluated_with_costs
from neighbor_grpo.files import atomic
from neighbor_grpo.run import files

ROOT = Path(__file__).resolve().parents[1]
RUNS, PICTURE = ROOT / "benchmarks" / "results" / "wall" / "runs.json", ROOT / "docs" / "strict.png"
LONG, SHORT = "long", "short"  # folders of runs
STRICT, DISTANCE = "scenes_strict", "scenes_distance"
Line = dict[str, float]


def kept(run: Path) -> list[Line]:
    """Return the evaluated lines of a run: iterations, evaluations, pictures and seconds up to there, and two measures."""
    config = files.read_config(run)
    samples = config.prompts.per_iteration * config.method.group_size
    lines = evaluated_with_costs(files.read_metrics(run), samples)
    return [
        {cost: round(line[cost]) for cost in COSTS} | {name: round(line[f"eval/{name}"], 4) for name in (STRICT, DISTANCE)}
        for line in lines
    ]


def rows(runs: dict[str, list[Line]], folder: str) -> dict[str, list[list[Line]]]:
    """Return the runs of a folder by row, all seeds of a row together; runs without a point are left out."""
    found: dict[str, list[list[Line]]] = defaultdict(list)
    for name, lines in sorted(runs.items()):
        place, _, row = name.partition("/")
        if place == folder and len(lines) > 1:
            found[row.partition("/")[0]].append(lines)
    return found


def spread(values: list[float], digits: int) -> str:
    """Return a mean, with the standard deviation over seeds where there are several."""
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def table(found: dict[str, list[list[Line]]], best: bool) -> str:
    """Return the best evaluation of every run, or the last, as a table."""
    lines = [
        "| run | iterations | evaluations | pictures | seconds | `scenes_strict` | gain | `scenes_distance` |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, seeds in found.items():
        ends = [max(seed, key=lambda line: line[STRICT]) if best else seed[-1] for seed in seeds]
        costs = " | ".join(f"{mean(end[cost] for end in ends):,.0f}" for cost in COSTS)
        gain = spread([100 * (end[STRICT] - seed[0][STRICT]) for end, seed in zip(ends, seeds, strict=True)], 1)
        strict, distance = (spread([end[key] for end in ends], digits) for key, digits in ((STRICT, 3), (DISTANCE, 1)))
        lines.append(f"| {name} | {costs} | {strict} | +{gain} | {distance} |")
    return "\n".join(lines)


def draw(found: dict[str, list[list[Line]]]) -> None:
    """Draw strict correctness and distance against evaluations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, measure in zip(figure.subplots(1, 2), (STRICT, DISTANCE), strict=True):
        for name, (lines, *_) in found.items():
            x, y = ([line[key] for line in lines] for key in ("evaluations", measure))
            axes.plot(x, y, marker="o", markersize=3, label=name)
        axes.set(xlabel="model evaluations", ylabel=measure)
    axes.legend(fontsize=8)
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    """Run the benchmark from the command line."""
    runs: dict[str, list[Line]] = json.loads(RUNS.read_text()) if RUNS.exists() else {}
    for folder in map(Path, sys.argv[1:]):
        runs |= {str(file.parent.relative_to(folder)): kept(file.parent) for file in sorted(folder.rglob("metrics.jsonl"))}
        atomic.write(
            RUNS, "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(runs[name])}" for name in sorted(runs)) + "\n}\n"
        )
    print(table(rows(runs, LONG), best=True), table(rows(runs, SHORT), best=False), sep="\n\n")
    draw(rows(runs, LONG))


if __name__ == "__main__":
    main()
