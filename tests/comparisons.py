"""Small comparisons on the random-weight pipeline."""

import sys

import yaml
from runs import REWARD

from neighbor_grpo.cli import main

SMALL = {
    "neighbor": {"name": "neighbor", "group_size": 4, "num_steps": 3, "num_train_steps": 2, "num_anchors": 2},
    "dance": {"name": "dance_grpo", "group_size": 4, "num_steps": 3, "num_train_steps": 2, "updates_per_rollout": 2},
}


def comparison(tmp, model="scenes", methods=None, **more):
    """A comparison file of two small methods on two seeds."""
    (tmp / "reward.py").write_text(REWARD)
    (tmp / "prompts.txt").write_text("a red circle\ntwo blue stars\n")
    values = {
        "run_dir": str(tmp / "out"),
        "base": {
            "model": {"path": str(model), "lora": {"rank": 2}},
            "device": "cpu",
            "reward": f"{tmp / 'reward.py'}:brightness",
            "prompts": {"path": str(tmp / "prompts.txt"), "per_iteration": 1, "cache_dir": str(tmp / "cache")},
            "evaluate": {"prompts": 2, "seeds": 2, "gallery": 2},
            "save_every": 1,
        },
        "methods": [{"run": name, "method": method} for name, method in SMALL.items()] if methods is None else methods,
        "seeds": [0, 1],
        "budget": {"iterations": 3},
        "points": 3,
        **more,
    }
    file = tmp / "compare.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def command(*arguments):
    return [sys.executable, "-m", "neighbor_grpo.cli", "compare", *map(str, arguments)]


def compare(*arguments):
    return main(["compare", *map(str, arguments)])
