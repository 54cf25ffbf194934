"""Scoring with any reward.  A picture that cannot be scored has NaN and a reason, never a number."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from neighbor_grpo.errors import UserError
from neighbor_grpo.files.images import key_frames
from neighbor_grpo.rewards.scorer import Reward, Scorer

Outcome = float | Exception  # a score, or why it is missing


class RewardError(UserError):
    """Report that too many pictures have no score."""


@dataclass(frozen=True)
class Failure:
    """Describe a picture without a score."""

    index: int  # among the N pictures that were scored
    prompt: str
    reason: str


@dataclass(frozen=True)
class Scores:
    """Hold the scores of N pictures, and why some are missing."""

    values: Tensor  # [N] float64 on the CPU, NaN for a missing score
    failures: tuple[Failure, ...] = ()


def score(scorer: Scorer, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]], group: int = 1) -> Scores:
    """Score N pictures [N, 3, H, W] or videos [N, T, 3, H, W]; those of one prompt are adjacent, `group` of each.

    If a call raises, its pictures are scored again in halves, so that one bad picture does not cost the others their scores.
    A groupwise reward fails by whole groups.  If a reward returns the wrong number of values, all pictures of the call fail,
    because nothing says which value belongs to which picture.
    """
    function = _function_for(scorer, images)
    size = group if scorer.groupwise else max(len(prompts), 1)
    outcomes: list[Outcome] = []
    for start in range(0, len(prompts), size):
        rows = slice(start, start + size)
        outcomes += _call(function, images[rows], prompts[rows], metadata[rows], split=not scorer.groupwise)
    failures = tuple(
        Failure(n, prompts[n], " ".join(f"{type(value).__name__}: {value}".split()))
        for n, value in enumerate(outcomes)
        if isinstance(value, Exception)
    )
    values = [float("nan") if isinstance(value, Exception) else value for value in outcomes]
    return Scores(torch.tensor(values, dtype=torch.float64), failures)


@dataclass(frozen=True)
class FrameMean:
    """Score videos [N, T, 3, H, W] by a reward of pictures: the mean over `files.images.key_frames`.

    A video has no score if one of these frames has none.
    """

    reward: Reward
    split: bool  # score again in halves after an exception

    def __call__(self, videos: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> list[Outcome]:
        """Score the videos."""
        frames = [_call(self.reward, frame, prompts, metadata, self.split) for frame in key_frames(videos).unbind(1)]
        return [_mean(values) for values in zip(*frames, strict=True)]


def _mean(values: Sequence[Outcome]) -> Outcome:
    numbers = [value for value in values if not isinstance(value, Exception)]
    failed = next((value for value in values if isinstance(value, Exception)), None)
    return failed or sum(numbers) / len(numbers)


def _function_for(scorer: Scorer, images: Tensor) -> Reward:
    """Return the function that scores pictures, or videos if `images` are videos."""
    if images.ndim == 5 and not scorer.of_videos:
        return FrameMean(scorer.function, split=not scorer.groupwise)
    if images.ndim == 4 and scorer.of_videos:
        raise UserError(f"reward {scorer.name} scores videos, but these are pictures: choose a video model or another reward")
    return scorer.function


def _call(function: Reward, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]], split: bool) -> list[Outcome]:
    n = len(prompts)
    try:
        values = function(images, prompts, metadata)
        shape = tuple(values.shape) if isinstance(values, Tensor) else (len(values),)
        if shape != (n,):
            return [ValueError(f"the reward returned shape {shape} for {n} pictures: return one value a picture")] * n
        return [_number(value) for value in (values.tolist() if isinstance(values, Tensor) else values)]
    except Exception as error:  # a user's function may raise anything
        if n <= 1 or not split:
            return [error] * n
        first, second = slice(0, n // 2), slice(n // 2, n)
        return [
            outcome
            for half in (first, second)
            for outcome in _call(function, images[half], prompts[half], metadata[half], split)
        ]


def _number(value: Any) -> Outcome:
    if isinstance(value, Exception):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return ValueError(f"the reward returned {value!r} instead of a number")
    return number if isfinite(number) else ValueError(f"the reward returned {number}")
