"""Measures of a set of pictures rather than of one: what a hacked reward gives away.

Each is a function (images [P, S, 3, H, W] in [0, 1], prompts [P]) -> float, of S pictures for each of P prompts.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from neighbor_grpo.errors import UserError
from neighbor_grpo.rewards.jpeg import jpeg_bytes
from neighbor_grpo.scenes.render import render
from neighbor_grpo.scenes.world import parse, sample_scene


def diversity(images: Tensor, prompts: list[str]) -> float:
    """Mean distance between two pictures of one prompt: root mean square over their 16 x 16 thumbnails."""
    if images.shape[1] < 2:
        raise UserError("diversity compares pictures of one prompt: set evaluate.seeds to 2 or more")
    small = F.adaptive_avg_pool2d(images.flatten(0, 1).float(), 16).unflatten(0, images.shape[:2]).flatten(2)
    distance = torch.cdist(small, small) / small.shape[-1] ** 0.5  # [P, S, S]
    return (distance.sum() / (distance.numel() - distance.shape[0] * distance.shape[1])).item()


def jpeg_size(images: Tensor, prompts: list[str]) -> float:
    """Mean size as a JPEG of quality 95, in bytes."""
    return float(np.mean([jpeg_bytes(image) for image in images.flatten(0, 1)]))


def kernel_distance(a: Tensor, b: Tensor, bandwidth: float) -> float:
    """Maximum mean discrepancy with the kernel exp(-||x - y||^2 / (2·bandwidth^2)).  [n, d], [m, d]

    The root of the unbiased estimate of its square, 0 where that is negative: a distance, unlike the square that KID is.
    """

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(x, y).square() / (2 * bandwidth**2)).double()

    within = [(kernel(x, x).sum() - len(x)) / (len(x) * (len(x) - 1)) for x in (a, b)]
    return max((within[0] + within[1] - 2 * kernel(a, b).mean()).item(), 0.0) ** 0.5


def _patches(images: Tensor, n: int = 6000) -> Tensor:
    """n of the pictures' 8 x 8 patches, the same places for the same number of pictures.  [N, 3, H, W] -> [n, 192]"""
    patches = F.unfold(images.float(), 8, stride=4).transpose(1, 2).flatten(0, 1)
    return patches[torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))[:n]]


def scenes_distance(images: Tensor, prompts: list[str]) -> float:
    """Kernel distance between the pictures' patches and those of the renderer's own pictures of the same prompts, x 100.

    Features: the pixels of 8 x 8 patches, bandwidth 1.  They show what a hacked picture gives away first, off colours,
    smears and textures, and are the same wherever an object lies; that layouts collapse is for `diversity` to show.
    The reference has four pictures for each of these, seeds fixed.
    """
    rng = np.random.default_rng(0)
    specs = [parse(prompt) for prompt in prompts for _ in range(4 * images.shape[1])]
    true = torch.from_numpy(np.stack([render(sample_scene(spec, rng), rng) for spec in specs]))
    return 100 * kernel_distance(_patches(images.flatten(0, 1)), _patches(true), bandwidth=1.0)


METRICS = {"diversity": diversity, "jpeg_size": jpeg_size, "scenes_distance": scenes_distance}
