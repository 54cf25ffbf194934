"""The files of runs, without training anything: for pages, which read nothing else."""

import json
from pathlib import Path

from PIL import Image

from neighbor_grpo.config import load_config
from neighbor_grpo.files import atomic
from neighbor_grpo.run import files
from neighbor_grpo.run.record import Record

PROMPTS = ("a red circle", "two blue stars", "a <b>green</b> square & more")


def make_run(run: Path, lines: list[dict], *settings: str, ended: str | None = "finished") -> Path:
    """Write a run with these lines of metrics.jsonl."""
    run.mkdir(parents=True)
    config = load_config(None, [f"run_dir={run}", "iterations=10", *settings])
    files.begin(run, config, ["the plan"], Record(config.model_dump(mode="json"), {}, ended=ended))
    for line in lines:
        files.record(run, line)
    return run


def line(n: int, evaluated: bool = False, **more: float) -> dict:
    """Return a line of metrics.jsonl: a reward that rises, a phase of 2 s, and one of 1 s."""
    found = {"iteration": n}
    if evaluated:
        found |= {
            "eval/scenes": 0.1 + n / 100,
            "eval_spread/scenes": 0.02,
            "eval/diversity": 0.5 - n / 100,
            "eval/sharpness": 2.0,
        }
    if n:
        found |= {"reward/scenes": n / 7, "spread/scenes": 0.05, "time/rollout": 2.0, "time/update": 1.0, "grad_norm": 0.5}
    return found | more


def add_samples(run: Path, iteration: int, colour: str, seeds: int = 2, size: int = 32) -> None:
    """Write sample pictures: a square of one colour with a bar that tells prompt and seed."""
    with atomic.directory(run / "samples" / f"{iteration:06d}", "samples") as aside:
        for p in range(len(PROMPTS)):
            for s in range(seeds):
                picture(colour, p * seeds + s, size).save(aside / f"{p:02d}-{s}.png")
        (aside / "prompts.json").write_text(json.dumps(PROMPTS))


def add_group(run: Path, iteration: int, rewards: list[float | None], advantages: list[float] | None) -> None:
    """Write a rollout group."""
    with atomic.directory(run / "groups" / f"{iteration:06d}", "groups") as aside:
        for member in range(len(rewards)):
            picture("teal", member + iteration, 16).save(aside / f"{member:02d}.png")
        known = {"prompt": "a group's prompt", "rewards": {"scenes": rewards}, "advantages": advantages}
        (aside / "group.json").write_text(json.dumps(known))


def picture(colour: str, bar: int, size: int) -> Image.Image:
    """Draw a picture that differs by colour and bar."""
    image = Image.new("RGB", (size, size), colour)
    image.paste("white", (0, 0, 1 + bar, 3))
    return image
