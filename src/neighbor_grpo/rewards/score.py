"""One call for every reward, and what becomes of a picture that could not be scored: NaN and a reason, never a number."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from math import isfinite
from typing import Any, Protocol

import torch
from torch import Tensor

from neighbor_grpo.errors import UserError
from neighbor_grpo.files.images import key_frames


class Reward(Protocol):
    """A reward that sets `groupwise = True` is given one prompt's pictures at a time, so that it may compare them.

    One that sets `of_videos = True` is given videos [N, T, 3, H, W]; any other scores a video by its frames.
    """

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor | Sequence[float | Exception]:
        """images [N, 3, H, W] (or videos) in [0, 1], prompts and metadata of length N -> N floats, higher is better.

        In the place of a picture that could not be scored: NaN, or better an exception that says why.
        """


def settings_of(reward: Reward) -> dict[str, Any]:
    """What decides a scorer's numbers: what it says of itself as `id`, or else its fields; nothing of a function."""
    if hasattr(reward, "id"):
        return reward.id
    return asdict(reward) if is_dataclass(reward) and not isinstance(reward, type) else {}


def identity(reward: Reward) -> dict[str, Any]:
    """What a scorer is, to be stored with its numbers: its class or function and every setting."""
    kind = type(reward) if is_dataclass(reward) else reward
    return {"is": f"{kind.__module__}.{kind.__qualname__}"} | settings_of(reward)


class RewardError(UserError):
    """So many pictures could not be scored that the rewards are not to be trusted."""


@dataclass(frozen=True)
class Failure:
    """A picture without a score."""

    index: int  # which of the N
    prompt: str
    reason: str


@dataclass(frozen=True)
class Scores:
    values: Tensor  # [N] float64 on the CPU, NaN where there is no score
    failures: tuple[Failure, ...] = ()


def score(reward: Reward, images: Tensor, prompts: list[str], metadata: list[dict], group: int = 1) -> Scores:
    """Scores of N pictures or videos, `group` of a prompt beside each other.

    A batch that raises is scored again in halves, so that one bad picture costs no other its score; a groupwise reward fails
    by whole groups.  An answer of another length fails whole: nobody knows which number belongs to which picture.
    """
    reward = _for(reward, images)
    parts = range(0, len(prompts), group) if getattr(reward, "groupwise", False) else [0]
    size = group if getattr(reward, "groupwise", False) else len(prompts)
    outcome: list[float | Exception] = []
    for start in parts:
        rows = slice(start, start + size)
        outcome += _outcome(reward, images[rows], prompts[rows], metadata[rows])
    failures = tuple(
        Failure(n, prompts[n], " ".join(f"{type(value).__name__}: {value}".split()))
        for n, value in enumerate(outcome)
        if isinstance(value, Exception)
    )
    values = [float("nan") if isinstance(value, Exception) else value for value in outcome]
    return Scores(torch.tensor(values, dtype=torch.float64), failures)


@dataclass(frozen=True)
class OfFrames:
    """A reward of pictures over videos [N, T, 3, H, W]: its mean over `pixels.key_frames`, no score where one has none."""

    reward: Reward
    groupwise: bool

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> list[float | Exception]:
        frames = [_outcome(self.reward, frame, prompts, metadata) for frame in key_frames(images).unbind(1)]
        return [
            next((value for value in values if isinstance(value, Exception)), None) or sum(values) / len(values)
            for values in zip(*frames, strict=True)
        ]


def _for(reward: Reward, images: Tensor) -> Reward:
    """The reward as one of what is there: pictures [N, 3, H, W], or videos."""
    if images.ndim == 5 and not getattr(reward, "of_videos", False):
        return OfFrames(reward, getattr(reward, "groupwise", False))
    if images.ndim == 4 and getattr(reward, "of_videos", False):
        name = getattr(reward, "__name__", type(reward).__name__)
        raise UserError(f"{name} is a reward of videos: this model draws pictures")
    return reward


def _outcome(reward: Reward, images: Tensor, prompts: list[str], metadata: list[dict]) -> list[float | Exception]:
    n = len(prompts)
    try:
        values = reward(images, prompts, metadata)
        shape = tuple(values.shape) if isinstance(values, Tensor) else (len(values),)
        if shape != (n,):
            return [ValueError(f"gave values of shape {shape} for {n} pictures")] * n
        return [_number(value) for value in (values.tolist() if isinstance(values, Tensor) else values)]
    except Exception as error:  # a user's function: anything may come, none of it may pass for a score
        if n <= 1 or getattr(reward, "groupwise", False):
            return [error] * n
        half = n // 2
        return _outcome(reward, images[:half], prompts[:half], metadata[:half]) + _outcome(
            reward, images[half:], prompts[half:], metadata[half:]
        )


def _number(value) -> float | Exception:
    if isinstance(value, Exception):
        return value
    try:
        value = float(value)
    except (TypeError, ValueError):
        return ValueError(f"scored {value!r}, which is no number")
    return value if isfinite(value) else ValueError(f"scored {value}")
