"""Strict correctness by kind of prompt, from evaluations of the bundled model.

neighbor-grpo evaluate --run RUN --measure scenes_strict --seeds 8 --out DIR
python benchmarks/families.py DIR [DIR ...]
"""

import sys
from pathlib import Path

import numpy as np

from neighbor_grpo.evaluate.ledger import Ledger, short_hash
from neighbor_grpo.prompts.reading import read_prompts
from neighbor_grpo.rewards.registry import load_reward
from neighbor_grpo.worlds.scenes.world import FAMILIES, parse


def main() -> None:
    """Run the benchmark from the command line."""
    families = np.array([parse(prompt.text).family for prompt in read_prompts("scenes", held_out=True)])
    print("| evaluation | all | " + " | ".join(FAMILIES) + " |")
    print("|---" * (2 + len(FAMILIES)) + "|")
    for directory in map(Path, sys.argv[1:]):
        scorer = short_hash(load_reward("scenes_strict").identity)
        values = Ledger(directory).table("scenes_strict", scorer, len(families)).values.mean(1)
        cells = [f"{values.mean():.3f}", *(f"{values[families == family].mean():.3f}" for family in FAMILIES)]
        print(f"| {directory.name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
