"""Scoring with any reward.  A picture that cannot be scored has NaN and a reason, never a number."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neighbor_grpo.console import reason_of
from neighbor_grpo.errors import UserError
from neighbor_grpo.files.images import key_frames
from neighbor_grpo.rewards.call import Outcome, call
from neighbor_grpo.rewards.scorer import Scorer


class RewardError(UserError):
    """Report that too many pictures have no score."""


@dataclass(frozen=True)
class Failure:
    """Describe a picture without a score."""

    index: int  # among the N pictures that were scored
    prompt: str
    reason: str  # one line, safe for a terminal


@dataclass(frozen=True)
class Scores:
    """Hold the scores of N pictures, and why some are missing."""

    values: Tensor  # [N] float64 on the CPU, NaN for a missing score
    failures: tuple[Failure, ...] = ()


def score(scorer: Scorer, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]], group: int = 1) -> Scores:
    """Score N pictures [N, 3, H, W] or videos [N, T, 3, H, W]; those of one prompt are adjacent, `group` of each.

    The reward gets copies, which it may change.  If a call raises, its pictures are scored again in halves, so that one bad
    picture does not cost the others their scores.  A groupwise reward fails by whole groups.  If a reward returns the wrong
    number of values, all pictures of the call fail, because nothing says which value belongs to which picture.
    """
    size = group if scorer.groupwise else max(len(prompts), 1)
    outcomes: list[Outcome] = []
    for start in range(0, len(prompts), size):
        rows = slice(start, start + size)
        outcomes += _outcomes(scorer, images[rows], prompts[rows], metadata[rows])
    failures = tuple(
        Failure(n, prompts[n], reason_of(value)) for n, value in enumerate(outcomes) if isinstance(value, BaseException)
    )
    values = [float("nan") if isinstance(value, BaseException) else value for value in outcomes]
    return Scores(torch.tensor(values, dtype=torch.float64), failures)


def _outcomes(scorer: Scorer, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> list[Outcome]:
    """Score by one call, or videos by one call for each of `files.images.key_frames` if the reward scores pictures."""
    split = not scorer.groupwise
    if images.ndim == 4 and scorer.of_videos:
        raise UserError(f"reward {scorer.name} scores videos, but these are pictures: choose a video model or another reward")
    if images.ndim == 4 or scorer.of_videos:
        return call(scorer.function, images, prompts, metadata, split)
    frames = [call(scorer.function, frame, prompts, metadata, split) for frame in key_frames(images).unbind(1)]
    return [_mean(values) for values in zip(*frames, strict=True)]


def _mean(values: Sequence[Outcome]) -> Outcome:
    """Average the scores of a video's frames.  A video has no score if one of them has none."""
    numbers = [value for value in values if not isinstance(value, BaseException)]
    failed = next((value for value in values if isinstance(value, BaseException)), None)
    return sum(numbers) / len(numbers) if failed is None else failed
