"""Win rates: comparisons within a group instead of absolute scores (Pref-GRPO, arXiv 2508.20751)."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from math import isfinite
from typing import Any, ClassVar

import torch
from torch import Tensor

from neighbor_grpo.console import reason_of
from neighbor_grpo.rewards.call import Outcome, read_values
from neighbor_grpo.rewards.score import score
from neighbor_grpo.rewards.scorer import Preference, Scorer


@dataclass(frozen=True)
class WinRate:
    """Score a picture by the share of its group's other pictures that it beats; a tie counts half.

    The scores of the reward `of` decide a pair, or its method `prefer` if it has one.  A pair without a decision is left out
    for both pictures.
    """

    groupwise: ClassVar[bool] = True
    of: Scorer

    @property
    def id(self) -> dict[str, Any]:
        """Return the identity of the reward inside."""
        return {"of": self.of.identity}

    @property
    def of_videos(self) -> bool:
        """Return whether the reward inside scores videos."""
        return self.of.of_videos

    @property
    def counts(self) -> Mapping[str, int]:
        """Return the counters of the reward inside."""
        return self.of.counts

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> list[Outcome]:
        """Score the pictures of one prompt."""
        if len(prompts) < 2:
            return [ValueError("a win rate needs 2 or more pictures of a prompt: draw more samples of each")] * len(prompts)
        if self.of.prefer:
            wins, reasons = _wins_by_preference(self.of.prefer, images, prompts, metadata)
        else:
            wins, reasons = _wins_by_score(self.of, images, prompts, metadata)
        rates = wins.nanmean(1).tolist()
        return [
            rate if isfinite(rate) else ValueError(reasons.get(n, "not compared with any other picture"))
            for n, rate in enumerate(rates)
        ]


Wins = tuple[Tensor, dict[int, str]]  # [G, G] row over column, NaN without a comparison; why a picture has none


def _wins_by_score(scorer: Scorer, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Wins:
    scores = score(scorer, images, prompts, metadata, group=len(prompts))
    gap = scores.values[:, None] - scores.values
    wins = torch.where(gap.isnan(), gap, (gap.sign() + 1) / 2).fill_diagonal_(float("nan"))
    return wins, {failure.index: f"not compared: {failure.reason}" for failure in scores.failures}


def _wins_by_preference(prefer: Preference, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Wins:
    # a model may favour the picture that it sees first: in this order every picture is first about as often as second
    pairs = [(i, j) if (i + j) % 2 else (j, i) for i, j in combinations(range(len(prompts)), 2)]
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    returned = prefer(images[first], images[second], [prompts[i] for i in first], [metadata[i] for i in first])
    preferences = read_values(returned, len(pairs))
    wins = torch.full((len(prompts), len(prompts)), float("nan"), dtype=torch.float64)
    reasons: dict[int, str] = {}
    for (a, b), preference in zip(pairs, preferences, strict=True):
        if isinstance(preference, BaseException):
            reasons[a] = reasons[b] = f"not compared: {reason_of(preference)}"
        elif not 0 <= preference <= 1:
            reasons[a] = reasons[b] = f"not compared: prefer returned {preference:g}, not a probability from 0 to 1"
        else:
            wins[a, b], wins[b, a] = preference, 1 - preference
    return wins, reasons
