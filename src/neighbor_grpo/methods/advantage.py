"""From rewards to advantages: pure functions over groups.  P prompts, G samples in a group, M rewards."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor


def _mean_std(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population std over the last dimension, samples that were not scored (NaN) left out."""
    mean = rewards.nanmean(-1, keepdim=True)
    return mean, (rewards - mean).square().nanmean(-1, keepdim=True).sqrt()


def has_spread(rewards: Tensor) -> Tensor:
    """Whether a group's rewards differ by more than float noise.  [P, G] -> [P] bool

    std above 1e-5 of the mean's size, or of 1e-3 for tiny rewards.  NaN, a sample that was not scored, is left out.
    """
    mean, std = _mean_std(rewards.double())
    return (std > 1e-5 * mean.abs().clamp_min(1e-3)).squeeze(-1)


def z_score(rewards: Tensor, pool: Tensor | None = None) -> Tensor:
    """A = (r - mean of the group) / std within each group (Neighbor GRPO Eq. 3), population std.  [P, G] -> [P, G]

    With a pool, the std is that of all its rewards (Flow-GRPO: the iteration's), not each group's own.  A group without
    spread (`has_spread`) has A = 0, so that float noise is never blown up to unit size.  A sample that was not scored
    (NaN) is left out of mean and std and has A = 0.
    """
    rewards = rewards.double()
    mean, std = _mean_std(rewards)
    if pool is not None:
        std = _mean_std(pool.double().flatten())[1]
    counts = has_spread(rewards).unsqueeze(-1) & rewards.isfinite()
    return ((rewards - mean) / std).where(counts, 0.0).float()


def quasi_norm(adv: Tensor, p: float) -> Tensor:
    """A' = A / (sum_k |A_k|^p)^(1/p) in each group, p in (0, 2] (Neighbor GRPO Eq. 11).  [..., G] -> [..., G]

    p < 2 weighs groups with one clear winner above flat ones; p = 2 is GRPO's normalisation up to sqrt(G).  Zero stays zero.
    """
    largest = adv.abs().amax(-1, keepdim=True)  # taken out first: |A|^p must not overflow or vanish
    unit = adv / largest.where(largest > 0, 1.0)
    norm = unit.abs().pow(p).sum(-1, keepdim=True).pow(1 / p)
    return unit / norm.where(norm > 0, 1.0)


def combine(
    credit: Callable[[Tensor, Tensor], Tensor],
    rewards: Tensor,
    pool: Tensor,
    weights: Tensor,
    over: Literal["advantages", "rewards"],
) -> Tensor:
    """Advantages from several rewards [M, P, G], given a method's credit of one.  -> [P, ·]

    advantages   sum_m w_m·credit(r_m): every reward counts by its weight, whatever its scale (the paper's setting)
    rewards      credit(sum_m w_m·r_m): a reward counts by its weight times its spread

    pool [M, P', G] holds the rewards of all ranks, weights [M] are the w_m.  A sample that one reward failed to score (NaN)
    is left out of all: judged by the others alone it would stand apart from its group for no merit of its own.
    """
    weights, rewards, pool = weights.double(), *(r.double() + 0 * r.double().sum(0) for r in (rewards, pool))
    if over == "rewards":
        return credit(torch.tensordot(weights, rewards, 1), torch.tensordot(weights, pool, 1))
    return sum(w * credit(one, all_) for w, one, all_ in zip(weights, rewards, pool, strict=True)).float()
