"""The distance of pictures to the renderer's own."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from neighbor_grpo.scenes.render import render
from neighbor_grpo.scenes.world import parse, sample_scene


def kernel_distance(a: Tensor, b: Tensor, bandwidth: float) -> float:
    """Estimate the maximum mean discrepancy with the kernel exp(-||x - y||^2 / (2·bandwidth^2)).

    a [n, d], b [m, d].  Returns the root of the unbiased estimate of its square, 0 where that estimate is negative.  KID is the
    square itself.
    """

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(x, y).square() / (2 * bandwidth**2)).double()

    within = [(kernel(x, x).sum() - len(x)) / (len(x) * (len(x) - 1)) for x in (a, b)]
    return max((within[0] + within[1] - 2 * kernel(a, b).mean()).item(), 0.0) ** 0.5


def _patches(images: Tensor, n: int = 6000) -> Tensor:
    """Take n of the pictures' 8 x 8 patches, at fixed places for each number of pictures, [N, 3, H, W] -> [n, 192]."""
    patches = F.unfold(images.float(), 8, stride=4).transpose(1, 2).flatten(0, 1)
    return patches[torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))[:n]]


def scenes_distance(images: Tensor, prompts: list[str]) -> Tensor:
    """Measure the kernel distance, times 100, to the renderer's own pictures of the same prompts.

    Features: the pixels of 8 x 8 patches, bandwidth 1.  The reference holds four of the renderer's pictures for each given
    picture, with fixed seeds.
    """
    # Patches show what a hacked reward changes first (colours, smears, textures), wherever an object lies.  They do not show
    # that all pictures have become alike: `diversity` does.
    rng = np.random.default_rng(0)
    specs = [parse(prompt) for prompt in prompts for _ in range(4 * images.shape[1])]
    true = torch.from_numpy(np.stack([render(sample_scene(spec, rng), rng) for spec in specs]))
    return torch.tensor(100 * kernel_distance(_patches(images.flatten(0, 1)), _patches(true), bandwidth=1.0))
