"""Watching a run: what its figures are, how long each phase takes, and whether somebody asked it to stop."""

import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from neighbor_grpo.methods.advantage import has_spread


class Phases(dict[str, float]):
    """Seconds by phase, since it was last cleared."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if self.device.type == "cuda":  # once a phase, or its time would be booked on the next
            torch.cuda.synchronize()
        self[name] = self.get(name, 0.0) + time.perf_counter() - began


class Stop:
    """SIGINT and SIGTERM ask for a stop after the iteration (`signum`); a second one stops at once."""

    signum: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)

    def _ask(self, signum: int, frame) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum
        print("stopping after this iteration (again: at once, from the last checkpoint)", flush=True)


def reward_figures(names: Iterable[str], rewards: Tensor) -> dict[str, float]:
    """Of each reward: its mean, the mean of its spread in a group, the groups that have none, and the samples that could not
    be scored, which are left out of the rest.  [M, P, G]"""
    figures: dict[str, float] = {}
    for name, values in zip(names, rewards, strict=True):
        deviation = values - values.nanmean(-1, keepdim=True)
        figures |= {
            f"reward/{name}": values.nanmean().item(),
            f"spread/{name}": deviation.square().nanmean(-1).sqrt().nanmean().item(),
            f"flat_groups/{name}": int((~has_spread(values)).sum()),
            f"failed/{name}": int(values.isnan().sum()),
        }
    return figures


def reward_gap(base: dict, now: dict, trained: dict[str, float], watched: Iterable[str]) -> float | None:
    """How much more the trained rewards have risen than the watched reward that has risen least; None without one.

    Rises are in stds over pictures before training, "eval_spread/...", so that rewards of any scale can be compared; those
    of several trained rewards are averaged by their weights.
    """

    def risen(name: str) -> float:
        return (now[f"eval/{name}"] - base[f"eval/{name}"]) / max(base[f"eval_spread/{name}"], 1e-6)

    def known(names: Iterable[str]) -> list[str]:
        return [name for name in names if f"eval_spread/{name}" in base and f"eval/{name}" in now]

    inside, outside = known(trained), known(watched)
    if len(inside) < len(trained) or not outside:
        return None
    total = sum(abs(weight) for weight in trained.values()) or 1.0
    return sum(weight * risen(name) for name, weight in trained.items()) / total - min(map(risen, outside))


def health_figures(updates: list[dict[str, float]]) -> dict[str, float]:
    """Of an iteration's optimizer steps: |log rho| before the first (the noise floor) and at most, means of the rest."""
    mean = {name: sum(update[name] for update in updates) / len(updates) for name in updates[0]}
    divergence = {"kl": mean["kl"]} if "kl" in mean else {}
    return divergence | {
        "ratio/noise_floor": updates[0]["log_ratio"],
        "ratio/log_max": max(update["log_ratio"] for update in updates),
        "ratio/clipped": mean["clipped"],
        "loss": mean["loss"],
        "grad_norm": mean["grad_norm"],
    }


def phase_figures(seconds: Mapping[str, float], flops: Mapping[str, float], rate: float) -> dict[str, float]:
    """Seconds by phase and, of phases that are the model's work, their share of the device's rate of matrix products."""
    return {f"time/{phase}": spent for phase, spent in seconds.items()} | {
        f"mfu/{phase}": work / (rate * seconds[phase]) for phase, work in flops.items()
    }


def training_seconds(figures: dict[str, float]) -> float:
    """Of an iteration's phases, evaluation apart."""
    return sum(figures.get(f"time/{phase}", 0.0) for phase in ("encode", "rollout", "decode", "reward", "update"))


def progress(done: int, total: int, figures: dict[str, float], seconds: float) -> str:
    """A line for the terminal; seconds of an iteration so far."""
    names = [key.removeprefix("reward/") for key in figures if key.startswith("reward/")]
    rewards = " ".join(
        f"{name} {figures[f'reward/{name}']:.4f} ±{figures[f'spread/{name}']:.3f}"
        + (f" ({failed} not scored)" if (failed := figures[f"failed/{name}"]) else "")
        for name in names
    )
    phases = " ".join(f"{key[5:]} {value:.2f}" for key, value in figures.items() if key.startswith("time/"))
    left = int(seconds * (total - done))
    return (
        f"{done}/{total}  {rewards}  clipped {figures['ratio/clipped']:.2f}  |g| {figures['grad_norm']:.2g}  "
        f"{seconds:.2f} s/it ({phases})  ETA {left // 60}:{left % 60:02d}"
    )
