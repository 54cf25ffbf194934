"""Measures: the rewards and metrics of an evaluation by name, and the values they give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from neighbor_grpo.errors import UserError
from neighbor_grpo.evaluate.metrics import METRICS, Metric
from neighbor_grpo.files.ledger import Values, short_hash
from neighbor_grpo.prompts.prompt import Prompt, for_each
from neighbor_grpo.rewards.registry import REWARDS, load_reward
from neighbor_grpo.rewards.score import score
from neighbor_grpo.rewards.scorer import Scorer


@dataclass(frozen=True)
class Measures:
    """Hold the rewards and metrics of an evaluation by name."""

    rewards: Mapping[str, Scorer]
    metrics: Mapping[str, Metric]

    @property
    def scorers(self) -> dict[str, Mapping[str, Any]]:
        """Return what each reward is: its class or function and every setting."""
        return {name: scorer.identity for name, scorer in self.rewards.items()}

    @property
    def keys(self) -> dict[str, str]:
        """Return the name of each measure's scorer in the ledger; metrics have no settings."""
        return {name: short_hash(scorer) for name, scorer in self.scorers.items()} | dict.fromkeys(self.metrics, "")

    @property
    def by_prompt(self) -> list[str]:
        """Return the names of the measures that give values for each prompt."""
        return [*self.rewards, *(name for name in self.metrics if name not in self.by_set)]

    @property
    def by_set(self) -> list[str]:
        """Return the names of the metrics that give one number for all prompts together."""
        return [name for name, metric in self.metrics.items() if metric.whole_set]

    def measure(self, name: str, images: Tensor, prompts: Sequence[Prompt], numbers: Sequence[int]) -> list[Values]:
        """Measure pictures [p, S, ...] of p prompts, the values of each prompt; `numbers`: which prompts these are."""
        if name in self.rewards:
            return score_prompts(self.rewards[name], images, prompts, numbers)
        values = self.metrics[name].measure(images, [prompt.text for prompt in prompts])
        return [Values((value,)) for value in values.tolist()]


def load_measures(names: Sequence[str], scorers: Mapping[str, Mapping[str, Any]]) -> Measures:
    """Load rewards and metrics by name.  Raises UserError for a name that is neither."""
    rewards: dict[str, Scorer] = {}
    for name in names:
        if name in METRICS:
            continue
        if name not in REWARDS and name not in scorers and ":" not in name:
            raise UserError(f"unknown measure {name!r}: choose among {', '.join([*METRICS, *REWARDS])}")
        rewards[name] = load_reward(name, scorers)
    return Measures(rewards, {name: METRICS[name] for name in names if name in METRICS})


def score_prompts(scorer: Scorer, images: Tensor, prompts: Sequence[Prompt], numbers: Sequence[int]) -> list[Values]:
    """Score pictures [p, S, ...] of p prompts by a reward, which finds the picture's number as metadata["picture"]."""
    seeds = images.shape[1]
    texts, metadata = for_each(prompts, seeds)
    places = [number * seeds + seed for number in numbers for seed in range(seeds)]
    metadata = [known | {"picture": place} for known, place in zip(metadata, places, strict=True)]
    scores = score(scorer, images.flatten(0, 1), texts, metadata, seeds)
    reasons = {failure.index: failure.reason for failure in scores.failures}
    values = [None if n in reasons else value for n, value in enumerate(scores.values.tolist())]
    return [
        Values(
            tuple(values[first : first + seeds]),
            {seed: reasons[first + seed] for seed in range(seeds) if first + seed in reasons},
        )
        for first in range(0, len(values), seeds)
    ]


def summary(name: str, values: Tensor, max_failed: float) -> dict[str, float]:
    """Summarize a reward's scores (NaN without a score): mean, standard deviation over pictures, number of failures.

    With more than a share `max_failed` of failures the mean is left out: a mean of the few others would mislead.
    """
    scored = values.numpy()[np.isfinite(values.numpy())]
    failed = values.numel() - len(scored)
    figures = {f"eval_failed/{name}": float(failed)} if failed else {}
    if failed <= max_failed * values.numel():
        figures |= {f"eval/{name}": float(scored.mean()), f"eval_spread/{name}": float(scored.std())}
    return figures
