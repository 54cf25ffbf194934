"""Rewards and metrics by name, and what they say of a set of pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from neighbor_grpo.errors import UserError
from neighbor_grpo.evaluate.metrics import METRICS, Metric
from neighbor_grpo.rewards.registry import REWARDS, load_reward
from neighbor_grpo.rewards.scorer import Scorer


def load_measures(
    names: Sequence[str], scorers: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Scorer], dict[str, Metric]]:
    """(rewards, metrics) by name.  Raises UserError for a name that is neither."""
    rewards: dict[str, Scorer] = {}
    for name in names:
        if name in METRICS:
            continue
        if name not in REWARDS and name not in scorers and ":" not in name:
            raise UserError(f"no metric or reward {name!r}: there are {', '.join([*METRICS, *REWARDS])}")
        rewards[name] = load_reward(name, scorers)
    return rewards, {name: METRICS[name] for name in names if name in METRICS}


def summary(name: str, values: Tensor, max_failed: float) -> dict[str, float]:
    """Of a reward's scores, NaN where a picture has none: mean, std over pictures, and how many failed.

    The mean is left out when more than a share `max_failed` has no score: a mean of the few that are left would be a lie.
    """
    scored = values.numpy()[np.isfinite(values.numpy())]
    failed = values.numel() - len(scored)
    figures = {f"eval_failed/{name}": float(failed)} if failed else {}
    if failed <= max_failed * values.numel():
        figures |= {f"eval/{name}": float(scored.mean()), f"eval_spread/{name}": float(scored.std())}
    return figures
