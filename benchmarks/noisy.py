"""Noisy and scarce rewards: `scenes_strict` with mistakes, with gaps, or with a further condition that is rarely met.

reward=benchmarks/noisy.py:flip_20       1 becomes 0 and 0 becomes 1 for 20 % of the pictures (also flip_10, flip_30)
reward=benchmarks/noisy.py:missing_20    20 % of the pictures have no score (also missing_10, missing_30); reward.max_failed=0.5
reward=benchmarks/noisy.py:scarce        1 where the prompt is met exactly and boldly, 3 % of the base's pictures

Which pictures are hit is decided by the bytes of each: a picture has the same score whenever it is asked for, so a run that
resumes is exact, and nothing can be learned about the noise but by heart.
"""

from dataclasses import dataclass
from hashlib import sha256
from math import nan

from torch import Tensor

from neighbor_grpo.worlds.scenes.verify import scenes, scenes_strict

HIGH = 0.275  # graded score from which `scarce` is 1


def chances(images: Tensor) -> list[float]:
    """Return a number in [0, 1) for each picture [N, 3, H, W], from its bytes."""
    pictures = (images.detach().float().cpu() * 255).round().byte().numpy()
    return [int.from_bytes(sha256(picture.tobytes()).digest()[:8], "big") / 2**64 for picture in pictures]


@dataclass(frozen=True)
class Flipped:
    """Score pictures strictly, and wrongly for a share of them."""

    share: float

    def __call__(self, images: Tensor, prompts: list[str], metadata: object) -> list[float]:
        """Score pictures [N, 3, H, W]."""
        right = scenes_strict(images, prompts)
        return [1 - value if chance < self.share else value for value, chance in zip(right, chances(images), strict=True)]


@dataclass(frozen=True)
class Missing:
    """Score pictures strictly, and a share of them not at all."""

    share: float

    def __call__(self, images: Tensor, prompts: list[str], metadata: object) -> list[float]:
        """Score pictures [N, 3, H, W]."""
        right = scenes_strict(images, prompts)
        return [nan if chance < self.share else value for value, chance in zip(right, chances(images), strict=True)]


flip_10, flip_20, flip_30 = Flipped(0.1), Flipped(0.2), Flipped(0.3)
missing_10, missing_20, missing_30 = Missing(0.1), Missing(0.2), Missing(0.3)


def scarce(images: Tensor, prompts: list[str], metadata: object) -> list[float]:
    """Score pictures 1 if they meet their prompt exactly and boldly, else 0."""
    strict, graded = scenes_strict(images, prompts), scenes(images, prompts)
    return [float(met and score >= HIGH) for met, score in zip(strict, graded, strict=True)]
