"""The distance of pictures to those that a world's renderer draws."""

from collections.abc import Callable
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Draw: TypeAlias = Callable[[str, np.random.Generator], np.ndarray]  # a picture [3, H, W] of a prompt


def renderer_distance(images: Tensor, prompts: list[str], draw: Draw, bandwidth: float) -> Tensor:
    """Measure the kernel distance, times 100, of pictures [P, S, 3, H, W] to the renderer's own of the same prompts.

    Features: the pixels of 8 x 8 patches.  The reference holds four of the renderer's pictures for each given
    picture, with fixed seeds.
    """
    # Patches show what a hacked reward changes first (colours, smears, textures), wherever an object lies.  They do not show
    # that all pictures have become alike: `diversity` does.
    reference, inside = _reference(tuple(prompts), 4 * images.shape[1], draw, bandwidth)
    return torch.tensor(100 * kernel_distance(_patches(images.flatten(0, 1)), reference, bandwidth, inside))


def kernel_distance(a: Tensor, b: Tensor, bandwidth: float, within_b: float | None = None) -> float:
    """Estimate the maximum mean discrepancy with the kernel exp(-||x - y||^2 / (2·bandwidth^2)).

    a [n, d], b [m, d]; within_b: `within(b, bandwidth)` where it is known.  Returns the root of the unbiased estimate of its
    square, 0 where that estimate is negative.  KID is the square itself.
    """
    if within_b is None:
        within_b = within(b, bandwidth)
    return max(within(a, bandwidth) + within_b - 2 * _kernel_sum(a, b, bandwidth) / (len(a) * len(b)), 0.0) ** 0.5


def within(x: Tensor, bandwidth: float) -> float:
    """Return the mean of the kernel over pairs of different rows of x [n, d]."""
    return (_kernel_sum(x, x, bandwidth) - len(x)) / (len(x) * (len(x) - 1))


def _kernel_sum(x: Tensor, y: Tensor, bandwidth: float) -> float:
    scale = -1 / (2 * bandwidth**2)
    parts = (torch.cdist(rows, y).square_().mul_(scale).exp_().sum(dtype=torch.float64) for rows in x.split(1024))
    return float(sum(parts))


def _patches(images: Tensor, n: int = 6000) -> Tensor:
    """Take n of the pictures' 8 x 8 patches, at fixed places for each number of pictures, [N, 3, H, W] -> [n, 192]."""
    patches = F.unfold(images.float(), 8, stride=4).transpose(1, 2).flatten(0, 1)
    return patches[torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))[:n]]


@lru_cache(maxsize=2)  # every evaluation of a run asks for the same
def _reference(prompts: tuple[str, ...], pictures: int, draw: Draw, bandwidth: float) -> tuple[Tensor, float]:
    """Return patches of the renderer's pictures of each prompt, and the kernel's mean within them."""
    rng = np.random.default_rng(0)
    drawn = np.stack([draw(prompt, rng) for prompt in prompts for _ in range(pictures)])
    patches = _patches(torch.from_numpy(drawn))
    return patches, within(patches, bandwidth)
