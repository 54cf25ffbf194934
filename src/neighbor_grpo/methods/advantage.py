"""From rewards to advantages: pure functions over groups.  P prompts, G samples in a group, M rewards.

A reward of NaN is a sample without a score.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from neighbor_grpo.flow.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def _mean_std(rewards: Tensor, ddof: int = 0) -> tuple[Tensor, Tensor]:
    """Return mean and std over the last dimension, without samples that have no score; the std's divisor is n - ddof."""
    mean, n = rewards.nanmean(-1, keepdim=True), (~rewards.isnan()).sum(-1, keepdim=True)
    return mean, ((rewards - mean).square().nansum(-1, keepdim=True) / (n - ddof)).sqrt()


def has_spread(rewards: Tensor) -> Tensor:
    """Return whether a group's rewards differ by more than float noise.  [P, G] -> [P] bool

    The std must exceed 1e-5 of the mean's size, or of 1e-3 for tiny rewards.

    >>> has_spread(torch.tensor([[0.3, 0.3, 0.3], [0.3, 0.4, 0.3]]))
    tensor([False,  True])
    """
    mean, std = _mean_std(rewards.double())
    return (std > 1e-5 * mean.abs().clamp_min(1e-3)).squeeze(-1)


def z_score(rewards: Tensor, pool: Tensor | None = None, ddof: int = 0) -> Tensor:
    """Return A = (r - mean of the group) / std (Neighbor GRPO Eq. 3).  [P, G] -> [P, G]

    The std's sum of squares is divided by n - ddof: 0 is the population std, 1 the sample std, which torch.std takes too.
    With a pool, the std is that of all its rewards (Flow-GRPO: the iteration's) instead of each group's own.  A group without
    spread (`has_spread`) has A = 0, so that float noise is never blown up to unit size.  A sample without a score is left
    out of mean and std and has A = 0.

    >>> z_score(torch.tensor([[1.0, 3.0], [2.0, 2.0]]))
    tensor([[-1.,  1.],
            [ 0.,  0.]])
    """
    rewards = rewards.double()
    mean, std = _mean_std(rewards, ddof)
    if pool is not None:
        std = _mean_std(pool.double().flatten(), ddof)[1]
    counts = has_spread(rewards).unsqueeze(-1) & rewards.isfinite()
    return ((rewards - mean) / std).where(counts, 0.0).float()


def quasi_norm(adv: Tensor, p: float) -> Tensor:
    """Return A' = A / (sum_k |A_k|^p)^(1/p) in each group, p in (0, 2] (Neighbor GRPO Eq. 11).  [..., G] -> [..., G]

    p < 2 weighs groups with one clear winner above flat ones; p = 2 is GRPO's normalisation up to sqrt(G).  Zero stays zero.

    >>> quasi_norm(torch.tensor([3.0, -4.0]), 2.0)
    tensor([ 0.6000, -0.8000])
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
    over: Literal["advantages", "mean_advantages", "rewards"],
) -> Tensor:
    """Return advantages from several rewards [M, P, G], given a method's credit of one.  -> [P, ·]

    advantages        sum_m w_m·credit(r_m): every reward counts by its weight, whatever its scale (the paper's setting)
    mean_advantages   the same divided by sum_m w_m, as MixGRPO's code does: what clips advantages sees those of one reward
    rewards           credit(sum_m w_m·r_m): a reward counts by its weight times its spread

    pool [M, P', G] holds the rewards of all ranks, weights [M] are the w_m.

    >>> rewards = torch.tensor([[[0.0, 2.0]], [[10.0, 30.0]]])
    >>> combine(lambda r, pool: z_score(r), rewards, rewards, torch.tensor([1.0, 0.5]), "advantages")
    tensor([[-1.5000,  1.5000]])
    """
    weights, rewards, pool = weights.double(), _scored_by_all(rewards), _scored_by_all(pool)
    if over == "rewards":
        return credit(torch.tensordot(weights, rewards, 1), torch.tensordot(weights, pool, 1))
    credits = torch.stack([w * credit(one, all_) for w, one, all_ in zip(weights, rewards, pool, strict=True)]).sum(0)
    return (credits / weights.sum() if over == "mean_advantages" else credits).float()


def _scored_by_all(rewards: Tensor) -> Tensor:
    """Set a sample that one reward failed to score to NaN in all of them.  [M, P, G]"""
    # Judged by the other rewards alone, it would differ from its group without having earned it.
    return rewards.double().where(rewards.isfinite().all(0), torch.nan)
