"""From rewards to advantages: pure functions over groups.  P prompts, G samples in a group, M rewards."""

from torch import Tensor


def has_spread(rewards: Tensor) -> Tensor:
    """Whether a group's rewards differ by more than float noise.  [P, G] -> [P] bool

    std above 1e-5 of the mean's size, or of 1e-3 for tiny rewards.
    """
    rewards = rewards.double()
    return rewards.std(-1, correction=0) > 1e-5 * rewards.mean(-1).abs().clamp_min(1e-3)


def z_score(rewards: Tensor) -> Tensor:
    """A = (r - mean) / std within each group (Neighbor GRPO Eq. 3), population std.  [P, G] -> [P, G]

    A group without spread (`has_spread`) has A = 0, so that float noise is never blown up to unit size.
    """
    rewards = rewards.double()
    mean = rewards.mean(-1, keepdim=True)
    std = rewards.std(-1, keepdim=True, correction=0)
    spread = has_spread(rewards).unsqueeze(-1)
    return ((rewards - mean) / std.where(spread, 1.0) * spread).float()


def quasi_norm(adv: Tensor, p: float) -> Tensor:
    """A' = A / (sum_k |A_k|^p)^(1/p) in each group, p in (0, 2] (Neighbor GRPO Eq. 11).  [..., G] -> [..., G]

    p < 2 weighs groups with one clear winner above flat ones; p = 2 is GRPO's normalisation up to sqrt(G).  Zero stays zero.
    """
    largest = adv.abs().amax(-1, keepdim=True)  # taken out first: |A|^p must not overflow or vanish
    unit = adv / largest.where(largest > 0, 1.0)
    norm = unit.abs().pow(p).sum(-1, keepdim=True).pow(1 / p)
    return unit / norm.where(norm > 0, 1.0)


def combine(rewards: Tensor, weights: Tensor) -> Tensor:
    """Several rewards, each z-scored in its group, then summed with weights.  [M, P, G], [M] -> [P, G]"""
    return (weights[:, None, None] * z_score(rewards)).sum(0)
