"""The commands that faults.py disturbs, each small enough to be run some hundred times."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

METHODS = (
    "{name: neighbor, group_size: 4, num_steps: 3, num_train_steps: 2, num_anchors: 2}",
    "{name: flow_grpo, group_size: 4, num_steps: 3}",
    "{name: flow_grpo_fast, group_size: 4, num_steps: 6}",
    "{name: dance_grpo, group_size: 4, num_steps: 3, num_train_steps: 1, updates_per_rollout: 2}",
    "{name: mix_grpo, group_size: 4, num_steps: 4, window: 2, dwell: 1}",
    "{name: mix_grpo_flash, group_size: 4, num_steps: 4, window: 2}",
    "{name: mix_grpo_flash_star, group_size: 4, num_steps: 4, window: 2}",
    "{name: branch_grpo, group_size: 4, num_steps: 4, splits: [0, 1]}",
    "{name: neighbor_late, group_size: 4, num_steps: 4}",
    "{name: nft, group_size: 4, num_steps: 3, num_train_steps: 2}",
    "{name: awm, group_size: 4, num_steps: 3, num_train_steps: 2}",
    "{name: v_grpo, group_size: 4, num_steps: 3, num_train_steps: 2}",
    "{name: dgpo, group_size: 4, num_steps: 3, num_train_steps: 2}",
    "{name: fdfo, group_size: 4, num_steps: 3}",
)
SMALL = (
    "prompts.per_iteration=2", f"method={METHODS[0]}", "model.lora.rank=2", "model.height=16", "model.width=16",
    "reward.train={jpeg_compressibility: 1}", "watch=[jpeg_size]", "batch.rollout=8", "evaluate.prompts=2", "evaluate.seeds=1",
    "evaluate.num_steps=2", "evaluate.every=1", "iterations=3", "save_every=1", "device=cpu",
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """Hold a command to disturb.

    prepare: makes what it starts from, once; run(place): the arguments; again(place): those that a user gives afterwards.
    """

    name: str
    run: Callable[[Path], list[str]]
    again: Callable[[Path], list[str]]
    prepare: Callable[[Path], list[str]] | None = None


def train(place: Path, *more: str) -> list[str]:
    """Return the arguments of a small run."""
    return ["train", f"run_dir={place / 'run'}", f"prompts.cache_dir={place.parent / 'cache'}", *SMALL, *more]


def trained(*more: str) -> Command:
    """Return a run as a command: it is resumed if it has begun, and begun again if not."""

    def again(place: Path) -> list[str]:
        begun = (place / "run" / "config.yaml").is_file()
        return ["train", "--resume", str(place / "run")] if begun else train(place, *more)

    return Command("train " + " ".join(more), lambda place: train(place, *more), again)


def after(name: str, arguments: Callable[[Path], list[str]]) -> Command:
    """Return a command on a finished run, which is simply given again."""
    return Command(name, arguments, arguments, lambda place: train(place, "evaluate.every=0"))


def commands() -> list[Command]:
    """Return everything that is disturbed."""
    return [
        *(trained(f"method={method}") for method in METHODS),
        trained("model.lora=null", "keep_checkpoints=1"),
        after("resume with more iterations", lambda p: ["train", "--resume", str(p / "run"), "iterations=4"]),
        after("resume with another evaluation", lambda p: ["train", "--resume", str(p / "run"), "evaluate.prompts=3"]),
        after("report", lambda p: ["report", str(p / "run")]),
        *(
            after(f"export {form}", lambda p, form=form: ["export", str(p / "run"), "--format", form, "--out", str(p / "out")])
            for form in ("diffusers", "comfyui", "merged")
        ),
        after(
            "evaluate",
            lambda p: ["evaluate", "--run", str(p / "run"), "--out", str(p / "out"), "--limit", "2", "--steps", "2",
                       "--seeds", "1", "--measure", "jpeg_size", "--device", "cpu"],
        ),
        Command("compare", compare, compare),
    ]  # fmt: skip


def compare(place: Path) -> list[str]:
    """Write a small comparison of two methods and return the arguments that run it."""
    base = train(place)[2:]
    values = [text.split("=", 1) for text in base if not text.startswith(("method=", "iterations="))]
    nested: dict[str, object] = {}
    for key, value in values:
        *path, last = key.split(".")
        section: Any = nested
        for part in path:
            section = section.setdefault(part, {})
        section[last] = yaml.safe_load(value)
    runs = [{"run": f"method-{n}", "method": yaml.safe_load(METHODS[n])} for n in (0, 3)]
    comparison = {
        "run_dir": str(place / "run"),
        "base": nested,
        "methods": runs,
        "seeds": [0],
        "budget": {"iterations": 2},
        "points": 2,
    }
    (place / "compare.yaml").write_text(yaml.safe_dump(comparison))
    return ["compare", str(place / "compare.yaml")]
