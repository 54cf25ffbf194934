"""Sets of training runs on the bundled model, three seeds each, and their table.

    python benchmarks/sweep.py demo          the demonstration
    python benchmarks/sweep.py reference     temperature x reference x rollout solver
    python benchmarks/sweep.py sigma         the paper's Table 4; anchors: Table 5; p: Table 6
    python benchmarks/sweep.py --list

Runs are written to runs/sweep/<set>/<variant>-<seed>.  Finished ones are not run again, and interrupted ones are resumed, so
a sweep may be stopped at any time.  `--jobs 2` trains two at once, each on its share of the cores.  The table is printed and
kept, with the raw numbers, in benchmarks/results/<set>.md and .json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from neighbor_grpo.run import files

SHORT = ["--preset", "scenes/neighbor_tight", "iterations=30", "evaluate.every=0", "evaluate.prompts=128", "optimizer.lr=1e-4"]
# The paper's baseline for its Tables 4-6 has (sigma, B, p) = (0.5, 4, 2), scenes/neighbor_tight has (0.2, 4, 0.8).
SETS: dict[str, dict[str, list[str]]] = {
    "demo": {"demonstration": ["--preset", "demo"]},
    "reference": {
        f"tau={tau} {reference} {solver}": [
            *SHORT,
            f"method.temperature={tau}",
            f"method.reference={reference}",
            f"method.solver={solver}",
        ]
        for tau in ("1", "dim")
        for reference, solver in (("stored", "dpmpp_2m"), ("literal", "dpmpp_2m"), ("stored", "euler"))
    },
    "sigma": {f"sigma={sigma}": [*SHORT, f"method.sigma={sigma}"] for sigma in (0.1, 0.2, 0.3, 0.5, 1.0)},
    "anchors": {f"B={b}": [*SHORT, f"method.num_anchors={b}"] for b in (2, 4, 8, 12)},
    "p": {f"p={p}": [*SHORT, f"method.p={p}"] for p in (0.5, 0.8, 1.0, 2.0)},
}


def train(run: Path, overrides: list[str], threads: int) -> None:
    """Run or resume a variant, unless it is finished or has diverged."""
    if files.finished(run) or files.diverged(run):
        return
    begun = (run / "config.yaml").exists()
    arguments = ["--resume", str(run)] if begun else [f"run_dir={run}", *overrides]
    run.parent.mkdir(parents=True, exist_ok=True)
    with (run.parent / f"{run.name}.log").open("a") as log:
        done = subprocess.run(
            [sys.executable, "-m", "neighbor_grpo.cli", "train", *arguments],
            stdout=log,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )
    print(f"{run}: {'done' if done.returncode == 0 else f'stopped with {done.returncode}, see {run}.log'}", flush=True)


def figures(run: Path) -> dict[str, float] | None:
    """Collect evaluation measures before and after, and the health and cost of a finished run."""
    if not files.finished(run):
        return None
    lines = files.read_metrics(run)
    steps = lines[1:]
    seconds = [files.training_seconds(line) for line in steps]
    values = {key: lines[-1][key] for key in lines[-1] if key.startswith("eval/")}
    return (
        {f"base/{key[5:]}": value for key, value in lines[0].items() if key.startswith("eval/")}
        | values
        | {
            "clipped": statistics.mean(line["ratio/clipped"] for line in steps),
            "noise_floor": max(line["ratio/noise_floor"] for line in steps),
            "s/iter": statistics.median(seconds),
            "training seconds": sum(seconds),
        }
    )


def table(results: dict[str, list[dict]]) -> str:
    """Format as Markdown the base model, then mean ± standard deviation over the finished seeds of every variant."""
    first = next(row for rows in results.values() for row in rows if "diverged" not in row)
    measures = [key[5:] for key in first if key.startswith("base/")]
    extra = ["clipped", "noise_floor", "s/iter"]
    lines = ["| | seeds | " + " | ".join(measures + extra) + " |", "|---" * (len(measures) + len(extra) + 2) + "|"]
    lines.append("| base | – | " + " | ".join(f"{first[f'base/{m}']:.4g}" for m in measures) + " | – | – | – |")
    for label, all_rows in results.items():
        cells, rows = [], [row for row in all_rows if "diverged" not in row]
        if lost := [str(row["diverged"]) for row in all_rows if "diverged" in row]:
            label = f"{label}: not finite any more after {', '.join(lost)} iterations"
        for key in [f"eval/{m}" for m in measures] + extra:
            values = [row[key] for row in rows]
            spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 and key.startswith("eval/") else ""
            cells.append(f"{statistics.mean(values):.3g}{spread}" if values else "–")
        lines.append(f"| {label} | {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", nargs="?", choices=list(SETS))
    parser.add_argument("--list", action="store_true", help="what the sets are")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--only-table", action="store_true", help="of what is finished")
    arguments = parser.parse_args()
    if arguments.list or not arguments.set:
        for name, variants in SETS.items():
            print(name, *(f"    {label}: {' '.join(change) or '(no change)'}" for label, change in variants.items()), sep="\n")
        return
    base = Path("runs/sweep") / arguments.set
    runs = {
        (label, seed): (base / f"{label.replace(' ', '_')}-{seed}", [*overrides, f"seed={seed}"])
        for seed in range(arguments.seeds)
        for label, overrides in SETS[arguments.set].items()
    }
    if not arguments.only_table:
        threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(lambda item: train(*item, threads), runs.values()))
    results: dict[str, list[dict]] = {label: [] for label in SETS[arguments.set]}
    for (label, _), (run, _) in runs.items():
        if files.diverged(run):
            results[label].append({"diverged": len(files.read_metrics(run)) - 1})
        elif row := figures(run):
            results[label].append(row)
    out = Path(__file__).parent / "results"
    out.mkdir(exist_ok=True)
    text = table(results)
    (out / f"{arguments.set}.md").write_text(text + "\n")
    (out / f"{arguments.set}.json").write_text(json.dumps(results, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
