"""What trackers cost an iteration: python benchmarks/trackers.py RUN [NAME ...]

RUN is a finished run of the bundled model.  Its lines of metrics.jsonl are sent again, offline, with a rollout group of 12
pictures at every tenth.  Printed for each tracker, as medians over blocks of ten lines: the time that the training waits and
the
CPU time of this process (the tracker's thread too), also as shares of the run's median iteration.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from accelerate import PartialState

from neighbor_grpo.config import Config
from neighbor_grpo.run import files
from neighbor_grpo.training.experience import Group
from neighbor_grpo.training.trackers import Trackers

BLOCKS, LINES = 20, 10


def main() -> None:
    """Print a line for each tracker."""
    run, *kinds = sys.argv[1:]
    PartialState(cpu=True)
    lines = [line for line in files.read_metrics(Path(run)) if "loss" in line]
    iteration = statistics.median(files.training_seconds(line) for line in lines)
    group = Group("a red circle", torch.randint(0, 256, (12, 3, 64, 64), dtype=torch.uint8), ["scenes 0.5"] * 12)
    for kind in kinds or ["tensorboard", "wandb"]:
        with tempfile.TemporaryDirectory() as place:
            config = Config(trackers={"use": [kind], "offline": True})
            trackers, waited, spent = Trackers.begin(config, Path(place), False, 0), [], []
            for block in range(BLOCKS):
                began, cpu = time.perf_counter(), time.process_time()
                trackers.rollout(block * LINES + 1, group)
                for n in range(LINES):
                    trackers.figures({**lines[n % len(lines)], "iteration": block * LINES + n + 1})
                waited.append((time.perf_counter() - began) / LINES)
                while any(one.sent.get("figures", 0) < (block + 1) * LINES for one in trackers.followers):
                    time.sleep(0.01)
                spent.append((time.process_time() - cpu) / LINES)
            trackers.finish(60)
        wait, work = statistics.median(waited), statistics.median(spent)
        print(
            f"{kind}: waits {1e3 * wait:.2f} ms ({wait / iteration:.3%}), CPU {1e3 * work:.2f} ms ({work / iteration:.3%}) of "
            f"an iteration of {iteration:.2f} s"
        )


if __name__ == "__main__":
    main()
