"""Several rewards on the same pictures, here and now or in a thread beside the rollout of the next ones."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from neighbor_grpo.prompts.reading import Prompt, for_each
from neighbor_grpo.rewards.registry import load_reward
from neighbor_grpo.rewards.score import Reward, RewardError, Scores, score


class Panel:
    """Rewards by name.  With `overlap` a thread of its own scores, in the order of submission: the same calls, so the same
    scores, at another time.

    Beside the rollout of the same iteration's other groups, never of the next one's: those would be drawn by weights that
    have not learned from these scores yet, and the run would no longer be the one without overlap.
    """

    def __init__(self, rewards: Mapping[str, Reward], overlap: bool = False) -> None:
        self.rewards = dict(rewards)
        self.thread = ThreadPoolExecutor(1, "scoring") if overlap else None

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> dict[str, Scores]:
        """Scores [P·G] by name of pictures [P, G, 3, H, W]."""
        texts, metadata = for_each(prompts, images.shape[1])
        with torch.no_grad():  # a thread does not inherit it
            return {
                name: score(reward, images.flatten(0, 1), texts, metadata, images.shape[1])
                for name, reward in self.rewards.items()
            }

    def submit(self, images: Tensor, prompts: Sequence[Prompt]) -> "Future[dict[str, Scores]]":
        if self.thread:
            return self.thread.submit(self, images, prompts)
        done: Future[dict[str, Scores]] = Future()
        done.set_result(self(images, prompts))
        return done


def load_panel(names: Sequence[str], scorers: Mapping[str, Mapping[str, Any]], overlap: bool = False) -> Panel:
    return Panel({name: load_reward(name, scorers) for name in names}, overlap)


def joined(parts: Sequence[dict[str, Scores]]) -> dict[str, Scores]:
    """Scores of pictures one part after another, as if scored at once."""
    return {
        name: Scores(
            torch.cat([part[name].values for part in parts]),
            tuple(failure for part in parts for failure in part[name].failures),
        )
        for name in parts[0]
    }


def check_failed(scores: Mapping[str, tuple[int, int, str]], most: float) -> None:
    """Raise RewardError if more than a share `most` of pictures has no score.  {name: (failed, pictures, a reason)}"""
    for name, (failed, pictures, reason) in scores.items():
        if failed > most * pictures:
            raise RewardError(
                f"reward {name} could not score {failed} of {pictures} pictures, more than reward.max_failed = {most:g} "
                f"allows; the first: {reason}"
            )
