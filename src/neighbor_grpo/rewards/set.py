"""Several rewards on the same pictures, at once or in a thread beside the rollout."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neighbor_grpo.console import one_line
from neighbor_grpo.prompts.prompt import Prompt, for_each
from neighbor_grpo.rewards.registry import load_reward
from neighbor_grpo.rewards.score import Failure, RewardError, Scores, score
from neighbor_grpo.rewards.scorer import Scorer


class RewardSet:
    """Score pictures by several rewards.

    With `overlap`, `submit` scores in one thread, in the order of submission: the calls and the scores are the same.  They
    run beside the rollout of other groups of the same iteration, never of the next one: its weights depend on these scores.
    """

    def __init__(self, scorers: Mapping[str, Scorer], overlap: bool = False) -> None:
        self.scorers = dict(scorers)  # by name
        self._thread = ThreadPoolExecutor(1, "scoring") if overlap else None

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> dict[str, Scores]:
        """Score pictures [P, G, 3, H, W] of P prompts.  Returns P * G scores by name of the reward."""
        texts, metadata = for_each(prompts, images.shape[1])
        return {
            name: score(scorer, images.flatten(0, 1), texts, metadata, images.shape[1]) for name, scorer in self.scorers.items()
        }

    def submit(self, images: Tensor, prompts: Sequence[Prompt]) -> "Future[dict[str, Scores]]":
        """Start `score` in the thread, or do it now without one.  Returns its future result."""
        if self._thread:
            return self._thread.submit(self.score, images, prompts)
        done: Future[dict[str, Scores]] = Future()
        done.set_result(self.score(images, prompts))
        return done


def load_rewards(names: Sequence[str], settings: Mapping[str, Mapping[str, Any]], overlap: bool = False) -> RewardSet:
    """Load rewards by name, with the settings of each (see `registry.load_reward`)."""
    return RewardSet({name: load_reward(name, settings) for name in names}, overlap)


def joined(parts: Sequence[dict[str, Scores]]) -> dict[str, Scores]:
    """Concatenate the scores of several calls."""
    return {
        name: Scores(
            torch.cat([part[name].values for part in parts]),
            tuple(failure for part in parts for failure in part[name].failures),
        )
        for name in parts[0]
    }


@dataclass(frozen=True)
class FailureCount:
    """Count the pictures that a reward could not score."""

    failed: int
    pictures: int  # scored and failed together
    first: Failure


def check_failed(counts: Mapping[str, FailureCount], most: float) -> None:
    """Check the counts by name of the reward.  Raises RewardError if more than the share `most` of pictures failed."""
    for name, count in counts.items():
        if count.failed > most * count.pictures:
            prompt = one_line(count.first.prompt, 200)
            raise RewardError(
                f"reward {name} could not score {count.failed} of {count.pictures} pictures, more than "
                f"reward.max_failed = {most:g} allows; the first: {count.first.reason} (prompt {prompt!r})"
            )
