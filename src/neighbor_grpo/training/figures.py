"""Figures of a run: what a line of metrics.jsonl says about rewards and time."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from neighbor_grpo.methods.advantage import has_spread


def reward_figures(names: Iterable[str], rewards: Tensor) -> dict[str, float]:
    """Return for each reward its mean, its mean spread in a group, the groups without spread, the samples without a score.

    rewards [M, P, G], NaN without a score; such a sample counts in the last figure only.
    """
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


def reward_gap(
    base: Mapping[str, float], now: Mapping[str, float], trained: Mapping[str, float], watched: Iterable[str]
) -> float | None:
    """Return how much more the trained rewards have risen than the watched reward that has risen least; None without one.

    A rise is in stds over pictures before training, "eval_spread/...", so that rewards of any scale can be compared.  The
    rises of several trained rewards are averaged by their weights.
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


def phase_figures(seconds: Mapping[str, float], flops: Mapping[str, float], rate: float) -> dict[str, float]:
    """Return seconds by phase and, for phases of model work, MFU: their share of the device's rate of matrix products."""
    return {f"time/{phase}": spent for phase, spent in seconds.items()} | {
        f"mfu/{phase}": work / (rate * seconds[phase]) for phase, work in flops.items() if seconds.get(phase)
    }
