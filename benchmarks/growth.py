"""Growth of the time of an iteration with the group (G), the steps (N), the trained rows (B·K), and the processes.

    python benchmarks/growth.py sizes [--iterations 5] [key=value ...]
    python benchmarks/growth.py processes [--iterations 8] [key=value ...]

sizes: measures the phases that should grow with a size at several sizes, in turn, so that a busy machine disturbs all alike.
Fits a line through the medians and prints how far the largest is from it.  Linear growth through zero is a slope of 1 in
log-log.
processes: compares one process of one thread with two such processes on twice the prompts (the batch grows with the
processes), by the work done in a second.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from neighbor_grpo.config import load_config
from neighbor_grpo.console import silence_libraries
from neighbor_grpo.training.trainer import Trainer

SIZES = {  # name: (values, overrides of one, phases that grow with it)
    "G": ((6, 12, 24, 48), lambda n: [f"method.group_size={n}"], ("rollout", "decode")),
    "N": ((4, 8, 16, 32), lambda n: [f"method.num_steps={n}", "method.num_train_steps=4"], ("rollout",)),
    "B·K": (
        (4, 8, 16, 32),
        lambda n: ["method.num_train_steps=4", f"method.num_anchors={n // 4}", "method.updates_per_rollout=1"],
        ("update",),
    ),
}
COMMON = ["watch=[jpeg_size]", "evaluate.prompts=1", "prompts.per_iteration=4"]


def seconds_of(trainer: Trainer, n: int, phases: tuple[str, ...]) -> float:
    """Run an iteration and return the seconds of these phases."""
    trainer._iteration(n)
    return sum(trainer.parts.phases.seconds[phase] for phase in phases)


def sizes(iterations: int, overrides: list[str]) -> None:
    """Measure phases at several sizes and print a line through the medians."""
    for name, (values, changes, phases) in SIZES.items():
        with tempfile.TemporaryDirectory() as directory:
            trainers = [
                Trainer(
                    load_config(
                        None,
                        [
                            f"run_dir={directory}/{value}",
                            f"iterations={iterations + 1}",
                            *COMMON,
                            *changes(value),
                            *overrides,
                        ],
                        ["demo"],
                    )
                )
                for value in values
            ]
            times: list[list[float]] = [[] for _ in values]
            for n in range(iterations + 1):
                for row, trainer in zip(times, trainers, strict=True):
                    seconds = seconds_of(trainer, n, phases)
                    row += [seconds] if n else []  # the first warms up
        medians = np.array([statistics.median(row) for row in times])
        slope = np.polyfit(np.log(values), np.log(medians), 1)[0]
        line = np.polyval(np.polyfit(values, medians, 1), values)
        print(
            f"{name}: {' + '.join(phases)}, slope {slope:.2f} in log-log, "
            f"at most {np.abs(medians / line - 1).max():.1%} off a straight line"
        )
        for value, row in zip(values, times, strict=True):
            print(f"    {name} = {value:3d}: {statistics.median(row):.3f} s ({min(row):.3f} to {max(row):.3f})")


def run_of(processes: int, iterations: int, overrides: list[str], directory: str) -> list[float]:
    """Return the seconds of each iteration except the first, without phases that wait for others."""
    run = f"{directory}/{processes}-{len(os.listdir(directory))}"
    keys = [
        f"run_dir={run}",
        f"iterations={iterations + 1}",
        f"prompts.per_iteration={4 * processes}",
        "watch=[jpeg_size]",
        "evaluate.prompts=2",
        "save_every=1000",
        *overrides,
    ]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        "-m",
        "neighbor_grpo.cli",
        "train",
        *keys,
    ]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()[2:]]
    return [sum(line[f"time/{phase}"] for phase in ("rollout", "decode", "reward", "update")) for line in lines]


def processes(iterations: int, overrides: list[str], rounds: int = 3) -> None:
    """Compare one process with two on twice the prompts."""
    ratios = []
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(rounds):
            one, two = (statistics.median(run_of(n, iterations, overrides, directory)) for n in (1, 2))
            ratios.append(2 * one / two)
            print(f"one process {one:.3f} s an iteration, two {two:.3f} s on twice the prompts: {ratios[-1]:.2f} x the work")
    print(f"median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) of {rounds}")


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sizes", "processes"])
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    silence_libraries()
    {"sizes": sizes, "processes": processes}[arguments.what](arguments.iterations, arguments.overrides)


if __name__ == "__main__":
    main()
