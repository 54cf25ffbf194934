"""What noisy and scarce rewards cost each method, from the raw numbers of `neighbor-grpo compare benchmarks/noise.yaml`.

    python benchmarks/noise.py [--runs runs/noise]

Reads benchmarks/results/noise, without noise, and benchmarks/results/noise_CONDITION; --runs takes in new ones first, from
RUNS/clean and RUNS/CONDITION.  Prints strict correctness after training, mean ± std over seeds, of the scarce reward its own
share of successes, and what was lost to the noise with its 95 % interval: Student's, with one variance over seeds for all rows,
because three seeds alone hardly tell a row's own.  Of a condition with one seed only the mean loss of all rows is shown.
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy.stats import t

from neighbor_grpo.run.pages import markdown_table

RESULTS = Path(__file__).parent / "results"
CLEAN, SCARCE = "clean", "scarce"
CONDITIONS = ("flip_10", "flip_20", "flip_30", "missing_10", "missing_20", "missing_30", SCARCE)
Curves = Mapping[str, Mapping[str, list[list[float]]]]


def place(condition: str) -> Path:
    """Return the directory that keeps the numbers of a condition."""
    return RESULTS / ("noise" if condition == CLEAN else f"noise_{condition}")


def keep(runs: Path) -> None:
    """Keep the numbers of new runs."""
    for condition in (CLEAN, *CONDITIONS):
        if (runs / condition / "results.json").is_file():
            place(condition).mkdir(exist_ok=True)
            for name in ("results.json", "table.csv", "table.md"):
                shutil.copyfile(runs / condition / name, place(condition) / name)


def curves_of(condition: str) -> Curves:
    """Read the curves of a condition, by row; none where it was not run."""
    file = place(condition) / "results.json"
    return json.loads(file.read_text())["curves"] if file.is_file() else {}


def kept() -> dict[str, Curves]:
    """Read the curves of all conditions that were run."""
    return {condition: curves for condition in (CLEAN, *CONDITIONS) if (curves := curves_of(condition))}


def ends(curves: Curves, row: str, measure: str) -> list[float]:
    """Return a measure after training, of each seed."""
    return [seed[-1] for seed in curves.get(row, {}).get(measure, [])]


def cell(values: list[float]) -> str:
    """Write a mean ± standard deviation over seeds."""
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}" if values else ""


class Losses:
    """Compare rows without and with noise; the variance over seeds is that of all rows together."""

    def __init__(self, clean: Curves, noisy: Curves, measure: str) -> None:
        pairs = {row: tuple(np.array(ends(curves, row, measure)) for curves in (clean, noisy)) for row in clean}
        self.pairs = {row: pair for row, pair in pairs.items() if all(map(len, pair))}
        cells = [values for pair in self.pairs.values() for values in pair]
        self.freedom = sum(len(values) - 1 for values in cells)
        self.variance = sum(((values - values.mean()) ** 2).sum() for values in cells) / self.freedom

    def of(self, *rows: str) -> str:
        """Write the mean loss of rows with its interval."""
        pairs = [self.pairs[row] for row in rows if row in self.pairs]
        if not pairs:
            return ""
        loss = np.mean([clean.mean() - noisy.mean() for clean, noisy in pairs])
        scale = sum(1 / len(values) for pair in pairs for values in pair) ** 0.5 / len(pairs)
        around = t.ppf(0.975, self.freedom) * self.variance**0.5 * scale
        return f"{loss:+.3f} ({loss - around:+.3f} – {loss + around:+.3f})"


def table(found: Mapping[str, Curves]) -> str:
    """Write a row for each method; the columns of a condition are those that it has."""
    rows = list(found[CLEAN])
    before, mean = "*before training*", "*mean of all*"
    body = {row: [row] for row in ("run", before, *rows, mean)}
    for condition, curves in found.items():
        measure = "reward" if condition == SCARCE else "scenes_strict"
        every = [seed for row in curves.values() for seed in row[measure]]
        body["run"].append({CLEAN: "without noise"}.get(condition, condition))
        body[before].append(f"{np.mean([seed[0] for seed in every]):.3f}")
        for row in rows:
            body[row].append(cell(ends(curves, row, measure)))
        body[mean].append(f"{np.mean([np.mean(values) for row in rows if (values := ends(curves, row, measure))]):.3f}")
        if condition not in (CLEAN, SCARCE):
            losses = Losses(found[CLEAN], curves, measure)
            body["run"].append("lost")
            body[before].append("")
            for row in rows:
                body[row].append(losses.of(row) if len(every) > len(curves) else "")
            body[mean].append(losses.of(*rows))
    return markdown_table(list(body.values()))


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path)
    arguments = parser.parse_args()
    if arguments.runs:
        keep(arguments.runs)
    print(table(kept()))


if __name__ == "__main__":
    main()
