"""How long a run of 1,000 iterations takes to begin its next iteration when it is resumed, beside a run that begins.

    python benchmarks/resume.py --iterations 1000 --times 5

A short run is made; its last line of metrics.jsonl and its checkpoint are set to iteration 1,000, with all lines in between.
Prints seconds of processor time from the configuration to the first iteration: median and range.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

from fault_commands import SMALL

from neighbor_grpo import Trainer, load_config
from neighbor_grpo.console import silence_libraries


def begin(trainer: Trainer) -> None:
    """Go to where the first iteration would begin."""
    with trainer.display, trainer.stop.listening():
        trainer._begin()
    trainer.parts.leave()


def age(run: Path, iterations: int) -> None:
    """Make a finished run look as if it had had so many iterations."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    old = [lines[0], *(lines[1] | {"iteration": n} for n in range(1, iterations)), lines[-1] | {"iteration": iterations}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old))
    newest = max((run / "checkpoints").iterdir())
    newest.rename(newest.with_name(f"{iterations:06d}"))


def main() -> None:
    """Measure both, alternately."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--times", type=int, default=5)
    arguments = parser.parse_args()
    silence_libraries()
    root = Path(tempfile.mkdtemp())
    settings = [*SMALL, f"prompts.cache_dir={root / 'cache'}"]
    run = Trainer(load_config(None, [*settings, f"run_dir={root / 'run'}"])).run()
    age(run, arguments.iterations)
    seconds: dict[str, list[float]] = {"begun": [], "resumed": []}
    for n in range(arguments.times):
        for name in seconds:
            began = time.process_time()
            if name == "begun":
                begin(Trainer(load_config(None, [*settings, f"run_dir={root / f'new-{n}'}"])))
            else:
                begin(Trainer.resume(run, [f"iterations={arguments.iterations + 1}"]))
            seconds[name].append(time.process_time() - began)
    shutil.rmtree(root)
    for name, values in seconds.items():
        print(f"{name:8} {median(values):.2f} s ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
