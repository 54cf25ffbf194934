"""Runs' files made by hand for tests of the doctor."""

import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from neighbor_grpo.run.record import Record, write_record

ITERATIONS = 30


def line(n: int, **changes) -> dict:
    """Figures of a healthy iteration."""
    rng = np.random.default_rng(n)
    figures = {
        "iteration": n,
        "reward/scenes": 0.1 + 0.001 * n + 0.02 * rng.standard_normal(),
        "spread/scenes": 0.03,
        "flat_groups/scenes": 0,
        "failed/scenes": 0,
        "ratio/noise_floor": 0.0,
        "ratio/log_max": 2e-4,
        "ratio/clipped": 0.02,
        "grad_norm": 0.03 * (1 + 0.1 * rng.standard_normal()),
        "time/rollout": 3.0,
        "time/reward": 0.2,
        "time/update": 1.5,
    }
    return figures | {key.replace("__", "/"): value for key, value in changes.items()}


def evaluation(scenes: float = 0.12, strict: float = 0.5, **changes) -> dict:
    """Figures of an evaluation of 512 pictures."""
    figures = {"eval/scenes": scenes, "eval_spread/scenes": 0.1, "eval/scenes_strict": strict, "eval_spread/scenes_strict": 0.5}
    return figures | {"eval/diversity": 0.17} | {key.replace("__", "/"): value for key, value in changes.items()}


def written(place: Path, lines: list[dict], moved: float = 0.05, finished: bool = True, **config) -> Path:
    """Write a run with these lines, whose sample pictures have moved so far since the beginning."""
    run = place / "run"
    run.mkdir()
    settings = {"iterations": ITERATIONS, "evaluate": {"prompts": 256, "seeds": 2}, **config}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    rng = np.random.default_rng(0)
    first = rng.uniform(0.2, 0.8, (16, 16, 3))
    for n, picture in ((0, first), (len(lines) - 1, first + moved)):
        folder = run / "samples" / f"{n:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(255 * picture).astype(np.uint8)).save(folder / "00-0.png")
    write_record(run, Record(settings, {}, ended="finished" if finished else None))
    return run


def run_of(last: dict | None = None, before: dict | None = None, **changes) -> list[dict]:
    """Lines of a run: every iteration with these changes, an evaluation before it and after it."""
    lines = [{"iteration": 0} | (before or evaluation())]
    lines += [line(n, **{key: value(n) if callable(value) else value for key, value in changes.items()}) for n in range(1, 31)]
    lines[-1] |= last or evaluation(scenes=0.14)
    return lines
