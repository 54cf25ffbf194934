"""Measures of a set of pictures rather than of one: what a hacked reward gives away.

Each is a function (images [P, S, 3, H, W] in [0, 1], prompts [P]) -> float, of S pictures for each of P prompts.
"""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from neighbor_grpo.errors import UserError
from neighbor_grpo.models import BUNDLED
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


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x·y/d + 1)^3 (KID, arXiv 1801.01401).  [n, d], [m, d]"""
    a, b = a.double(), b.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    aa, bb = kernel(a, a), kernel(b, b)
    within = (aa.sum() - aa.trace()) / (len(a) * (len(a) - 1)) + (bb.sum() - bb.trace()) / (len(b) * (len(b) - 1))
    return (within - 2 * kernel(a, b).mean()).item()


@cache
def _scenes_vae() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(BUNDLED, subfolder="vae", dtype=torch.float32).eval()


@torch.no_grad()
def _scenes_features(images: Tensor) -> Tensor:
    """Latent means of the bundled VAE, shifted and scaled.  [n, 1024]"""
    vae = _scenes_vae()
    chunks = [vae.encode(chunk.float().cpu() * 2 - 1).latent_dist.mean for chunk in images.split(32)]
    return ((torch.cat(chunks) - vae.config.shift_factor) * vae.config.scaling_factor).flatten(1)


def scenes_distance(images: Tensor, prompts: list[str]) -> float:
    """Kernel distance between the pictures and the renderer's own of the same prompts, times 1000.

    Features: latent means of the bundled VAE.  The reference has four pictures for each of these, seeds fixed.
    """
    rng = np.random.default_rng(0)
    specs = [parse(prompt) for prompt in prompts for _ in range(4 * images.shape[1])]
    true = torch.from_numpy(np.stack([render(sample_scene(spec, rng), rng) for spec in specs]))
    return 1000 * kernel_distance(_scenes_features(images.flatten(0, 1)), _scenes_features(true))


METRICS = {"diversity": diversity, "jpeg_size": jpeg_size, "scenes_distance": scenes_distance}
