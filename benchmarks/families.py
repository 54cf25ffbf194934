"""Strict correctness by kind of prompt, from evaluations of the bundled model.

neighbor-grpo evaluate --run RUN --measure scenes_strict --seeds 8 --out DIR
python benchmarks/families.py DIR [DIR ...]

Every evaluation after the first is compared with the first: the difference in points, and its 95 % interval over prompts.
"""

import sys
from pathlib import Path

import numpy as np

from neighbor_grpo.evaluate.statistics import paired
from neighbor_grpo.files.ledger import Ledger, short_hash
from neighbor_grpo.prompts.reading import read_prompts
from neighbor_grpo.rewards.registry import load_reward
from neighbor_grpo.worlds.scenes.world import FAMILIES, parse


def main() -> None:
    """Run the benchmark from the command line."""
    families = np.array([parse(prompt.text).family for prompt in read_prompts("scenes", held_out=True)])
    print("| evaluation | all | " + " | ".join(FAMILIES) + " |")
    print("|---" * (2 + len(FAMILIES)) + "|")
    scorer = short_hash(load_reward("scenes_strict").identity)
    directories = [Path(place) for place in sys.argv[1:]]
    tables = [Ledger(directory).table("scenes_strict", scorer, len(families)).values for directory in directories]
    of = [np.full(len(families), True), *(families == family for family in FAMILIES)]
    for directory, values in zip(directories, tables, strict=True):
        cells = [f"{values[kind].mean():.3f}" for kind in of]
        if values is not tables[0]:
            gains = [paired(values[kind], tables[0][kind]) for kind in of]
            cells = [
                f"{cell}, {100 * by.difference:+.1f} ({100 * by.low:+.1f} … {100 * by.high:+.1f})"
                for cell, by in zip(cells, gains, strict=True)
            ]
        print(f"| {directory.name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
