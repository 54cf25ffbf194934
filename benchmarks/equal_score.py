"""What each method has done to the pictures when it reaches a score, from the raw numbers of a comparison.

python benchmarks/equal_score.py runs/compare/scenes_4/results.json [--levels 1.2 1.36 1.5]

A level is so many times the trained reward before training.  Every seed is read where its curve first reaches the level, linear
between its evaluations; the interval is Student's, over seeds.  Below: the forward-process methods, which regress on eps - x0,
against Neighbor's family, whose targets are outputs of the model; the interval is Welch's, the methods' means its sample.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import stats

from neighbor_grpo.compare.rows import crossing

MEASURES = ("sharpness", "scenes_distance", "diversity", "scenes_strict", "evaluations")
FAMILIES = {
    "forward process": ("nft", "awm", "v_grpo", "dgpo"),
    "Neighbor's": ("neighbor", "neighbor_early", "neighbor_late", "fdfo"),
}
Curves = dict[str, list[list[float]]]


def measured_at(curves: Curves, level: float) -> Iterator[dict[str, float]]:
    """Yield the measures of each seed that reaches a reward, where it first does."""
    for seed, reward in enumerate(np.array(curves["reward"])):
        place = crossing(np.arange(len(reward)), reward, level)
        if place is not None:
            yield {name: float(np.interp(place, range(len(reward)), curves[name][seed])) for name in MEASURES}


def interval(values: list[float]) -> str:
    """Write a mean with its 95 % interval."""
    mean = f"{np.mean(values):,.4g}"
    if len(values) < 2:
        return mean
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), max(stats.sem(values), 1e-12))
    return f"{mean} ({low:,.4g} – {high:,.4g})"


def table(curves: dict[str, Curves], level: float) -> str:
    """Write the measures of all rows at a reward, then the difference between the families."""
    lines = ["| run | seeds | " + " | ".join(MEASURES) + " |", "|---" * (2 + len(MEASURES)) + "|"]
    means: dict[str, dict[str, float]] = {}
    for run, row in curves.items():
        found = list(measured_at(row, level))
        cells = [interval([each[name] for each in found]) if found else "" for name in MEASURES]
        lines.append(f"| {run} | {len(found)} of {len(row['reward'])} | " + " | ".join(cells) + " |")
        if found:
            means[run] = {name: float(np.mean([each[name] for each in found])) for name in MEASURES}
    groups = [[means[run] for run in family if run in means] for family in FAMILIES.values()]
    if all(len(group) > 1 for group in groups):
        cells = [difference(*([each[name] for each in group] for group in groups)) for name in MEASURES]
        lines.append(f"| {' minus '.join(FAMILIES)} | | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def difference(first: list[float], second: list[float]) -> str:
    """Write the difference of two means with its 95 % interval."""
    bounds = stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    return f"{np.mean(first) - np.mean(second):+,.4g} ({bounds.low:+,.4g} – {bounds.high:+,.4g})"


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--levels", type=float, nargs="+", default=[1.2, 1.36, 1.5])
    arguments = parser.parse_args()
    curves = json.loads(arguments.results.read_text())["curves"]
    start = float(np.mean([seed[0] for row in curves.values() for seed in row["reward"]]))
    for times in arguments.levels:
        print(f"\nAt a reward of {times * start:.4g}, {times:g} times that before training:\n")
        print(table(curves, times * start))


if __name__ == "__main__":
    main()
