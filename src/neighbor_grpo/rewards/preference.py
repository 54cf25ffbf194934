"""Comparisons within a group instead of absolute scores (Pref-GRPO, arXiv 2508.20751)."""

from dataclasses import dataclass
from itertools import combinations
from math import isfinite
from typing import Any, ClassVar

import torch
from torch import Tensor

from neighbor_grpo.rewards.score import Reward, identity, score


@dataclass(frozen=True)
class WinRate:
    """The share of a group's other pictures that a picture beats, a tie counting half.

    A pair is decided by the scores of the reward `of`; or, if it has a method prefer(images_a, images_b, prompts,
    metadata) -> P(a better) for each pair, by that.  What could not be scored or compared is left out on both sides.
    """

    groupwise: ClassVar[bool] = True
    of: Reward

    @property
    def id(self) -> dict[str, Any]:
        return {"of": identity(self.of)}

    @property
    def of_videos(self) -> bool:
        return getattr(self.of, "of_videos", False)

    def load(self) -> None:
        """Read the weights of the reward within now."""
        if hasattr(self.of, "load"):
            self.of.load()

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> list[float | Exception]:
        if len(prompts) < 2:
            return [ValueError("a win rate compares pictures of one prompt: there must be 2 or more")] * len(prompts)
        compare = self._judged if hasattr(self.of, "prefer") else self._scored
        wins, reasons = compare(images, prompts, metadata)
        rates = wins.nanmean(1).tolist()
        return [
            rate if isfinite(rate) else ValueError(reasons.get(n, "not compared with any other picture"))
            for n, rate in enumerate(rates)
        ]

    def _scored(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> tuple[Tensor, dict[int, str]]:
        """wins [G, G] of the row over the column, NaN where there is no comparison; why pictures have none."""
        scores = score(self.of, images, prompts, metadata, group=len(prompts))
        gap = scores.values[:, None] - scores.values
        wins = torch.where(gap.isnan(), gap, (gap.sign() + 1) / 2).fill_diagonal_(float("nan"))
        return wins, {failure.index: f"not compared: {failure.reason}" for failure in scores.failures}

    def _judged(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> tuple[Tensor, dict[int, str]]:
        # a judge may favour what it sees first: in this order every picture is first about as often as second
        pairs = [(i, j) if (i + j) % 2 else (j, i) for i, j in combinations(range(len(prompts)), 2)]
        first, second = ([pair[side] for pair in pairs] for side in (0, 1))
        verdicts = self.of.prefer(images[first], images[second], [prompts[i] for i in first], [metadata[i] for i in first])
        wins = torch.full((len(prompts), len(prompts)), float("nan"), dtype=torch.float64)
        reasons = {}
        for (a, b), verdict in zip(pairs, verdicts, strict=True):
            if isinstance(verdict, Exception):
                reasons[a] = reasons[b] = f"not compared: {type(verdict).__name__}: {verdict}"
            else:
                wins[a, b], wins[b, a] = float(verdict), 1 - float(verdict)
        return wins, reasons
