"""Small training runs on the random-weight pipeline."""

import json
from pathlib import Path

import numpy as np

REWARD = """
import time

import torch

def brightness(images, prompts, metadata):
    return images.mean((1, 2, 3))

def broken(images, prompts, metadata):
    raise RuntimeError("no luck")

def nan(images, prompts, metadata):
    values = images.mean((1, 2, 3))
    values[5] = float("nan")
    return values

def short(images, prompts, metadata):
    return [0.0]

def sometimes(images, prompts, metadata):
    # not by the pictures, whose last digits depend on how many are drawn at once
    fails = [(len(p) + prompts[:n].count(p)) % 5 == 0 for n, p in enumerate(prompts)]
    values = images.mean((1, 2, 3)).tolist()
    return [RuntimeError("no view") if no else v for v, no in zip(values, fails)]

def darkness(images, prompts, metadata):
    return 1 - images.mean((1, 2, 3))

def worth(images, prompts, metadata):
    # of the picture and of its prompt
    return images.mean((1, 2, 3)) + torch.tensor([len(p) / 100 for p in prompts])

def slow(images, prompts, metadata):
    time.sleep(0.2)
    return images.mean((1, 2, 3))

def flat(images, prompts, metadata):
    return [1.0] * len(prompts)
"""


DETACHED = """
from pydantic.dataclasses import dataclass
from neighbor_grpo.methods.neighbor import Neighbor

@dataclass(frozen=True)
class Detached(Neighbor):
    def loss(self, policy, rows):
        loss, figures = super().loss(policy, rows)
        return loss.detach(), figures
"""


LOOPBACK = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}  # environment of ranks on one machine


def settings(model: Path, tmp: Path, *more: str, function: str = "brightness") -> list[str]:
    """Overrides of a run of 3 iterations of 2 prompts of 4 samples, in tmp/run."""
    (tmp / "reward.py").write_text(REWARD)
    (tmp / "prompts.txt").write_text("a red circle\ntwo blue stars\na green square\n")
    return [
        f"run_dir={tmp / 'run'}",
        f"model.path={model}",
        "device=cpu",
        f"reward={tmp / 'reward.py'}:{function}",
        f"prompts.path={tmp / 'prompts.txt'}",
        f"prompts.eval_path={tmp / 'prompts.txt'}",
        "prompts.per_iteration=2",
        f"prompts.cache_dir={tmp / 'cache'}",
        "method.group_size=4",
        "method.num_steps=3",
        "method.num_train_steps=2",
        "method.num_anchors=2",
        "iterations=3",
        "optimizer.lr=1e-3",
        "model.lora.rank=2",
        "model.lora.alpha=4",
        "save_every=1",
        *more,
    ]


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def advantages(method, rewards: list[float | None]) -> list[float]:
    """Advantages of a group by the papers' formulas; up to a factor where the std is that of the iteration."""
    r = np.array([np.nan if value is None else value for value in rewards])
    half = (r - r.reshape(-1, 2)[:, ::-1].ravel()) / 2  # FDFO's, to the partner
    found = half if method.name == "fdfo" else (r - np.nanmean(r)) / np.nanstd(r)
    found = np.nan_to_num(found)
    if hasattr(method, "p"):
        found /= (np.abs(found) ** method.p).sum() ** (1 / method.p)
    return found.tolist()
