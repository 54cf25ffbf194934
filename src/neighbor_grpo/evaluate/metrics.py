"""Measures that need no prompt met and no weights: what a hacked reward gives away.

Each is a function (images [P, S, 3, H, W] in [0, 1], prompts [P]) of S pictures for each of P prompts; it gives a value for
each prompt [P], or one for the whole set [].  They say something beside the base model's own values, not by themselves.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from neighbor_grpo.errors import UserError
from neighbor_grpo.files.images import key_frames
from neighbor_grpo.rewards.jpeg import jpeg_bytes
from neighbor_grpo.scenes.render import render
from neighbor_grpo.scenes.world import parse, sample_scene

Metric = Callable[[Tensor, list[str]], Tensor]


def diversity(images: Tensor, prompts: list[str]) -> Tensor:
    """Mean distance between two pictures of one prompt: root mean square over their 16 x 16 thumbnails.  [P]"""
    if images.shape[1] < 2:
        raise UserError("diversity compares pictures of one prompt: set evaluate.seeds to 2 or more")
    small = F.adaptive_avg_pool2d(images.flatten(0, 1).float(), 16).unflatten(0, images.shape[:2]).flatten(2)
    distance = torch.cdist(small, small) / small.shape[-1] ** 0.5  # [P, S, S]
    return distance.sum((1, 2)) / (distance[0].numel() - distance.shape[1])


def jpeg_size(images: Tensor, prompts: list[str]) -> Tensor:
    """Mean size as a JPEG of quality 95, in bytes.  [P]"""
    return torch.tensor([[float(jpeg_bytes(image)) for image in row] for row in images]).mean(1)


def _luma(images: Tensor) -> Tensor:
    """Brightness (ITU-R BT.601).  [P, S, 3, H, W] -> [P, S, H, W]"""
    return torch.einsum("c,pschw->pshw", torch.tensor([0.299, 0.587, 0.114]), images.float())


def grid_artefacts(images: Tensor, prompts: list[str]) -> Tensor:
    """Power at the frequencies of a grid of 16 pixels over that beside them, about 1 where there is no grid.  [P]

    Of the profile d(x) = mean over y of |I(x + 1, y) - I(x, y)|, I the brightness, and of that along y: seams stand out of it
    whatever their sign.  Frequencies are the multiples of 1/16 below 1/2, beside them those two bins away, clear of the
    window; ratios of powers are averaged as logarithms, a natural spectrum's slope being straight there.  16 pixels are a
    token of a transformer with patches of 2 over a VAE of factor 8, and hold the VAE's own 8: seams and patch patterns
    that please a reward raise this first.  A side of less than 64 pixels is too short for 16: there the grid is of 8.
    """
    ratio = []
    for rows in (_luma(images), _luma(images).transpose(-1, -2)):
        profile = rows.diff(dim=-1).abs().mean(-2)  # [P, S, length]
        period = 16 if rows.shape[-1] >= 64 else 8
        length = profile.shape[-1] // period * period  # whole periods, so that the grid falls on bins
        if length < 3 * period:
            raise UserError("grid_artefacts needs pictures of at least 32 pixels a side")
        power = torch.fft.rfft(profile[..., :length] * torch.hann_window(length)).abs().square().clamp_min(1e-12).log()
        at = torch.arange(length // period, length // 2 - 2, length // period)
        ratio.append((power[..., at] - (power[..., at - 2] + power[..., at + 2]) / 2).mean(-1))
    return ((ratio[0] + ratio[1]) / 2).mean(1).exp()


def saturation(images: Tensor, prompts: list[str]) -> Tensor:
    """Mean over pixels of the largest minus the smallest channel: colours that a reward burns in.  [P]"""
    return (images.amax(2) - images.amin(2)).float().mean((1, 2, 3))


def sharpness(images: Tensor, prompts: list[str]) -> Tensor:
    """Root mean square of the brightness's Laplacian: edges and grain that a reward sharpens, detail that it melts.  [P]"""
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    edges = F.conv2d(_luma(images).flatten(0, 1).unsqueeze(1), kernel).unflatten(0, images.shape[:2])
    return edges.square().mean((2, 3, 4)).sqrt().mean(1)


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


def scenes_distance(images: Tensor, prompts: list[str]) -> Tensor:
    """Kernel distance between the pictures' patches and those of the renderer's own pictures of the same prompts, x 100.  []

    Features: the pixels of 8 x 8 patches, bandwidth 1.  They show what a hacked picture gives away first, off colours,
    smears and textures, and are the same wherever an object lies; that layouts collapse is for `diversity` to show.
    The reference has four pictures for each of these, seeds fixed.
    """
    rng = np.random.default_rng(0)
    specs = [parse(prompt) for prompt in prompts for _ in range(4 * images.shape[1])]
    true = torch.from_numpy(np.stack([render(sample_scene(spec, rng), rng) for spec in specs]))
    return torch.tensor(100 * kernel_distance(_patches(images.flatten(0, 1)), _patches(true), bandwidth=1.0))


scenes_distance.whole_set = True  # one number for all prompts together


def motion(videos: Tensor, prompts: list[str]) -> Tensor:
    """Mean absolute difference between one frame and the next: a video that a reward of pictures has frozen.  [P]

    videos [P, S, F, 3, H, W], the frames those of `pixels.key_frames`.
    """
    return videos.float().diff(dim=2).abs().mean((1, 2, 3, 4, 5))


motion.of_videos = True

METRICS = {
    metric.__name__: metric for metric in (diversity, jpeg_size, scenes_distance, grid_artefacts, saturation, sharpness, motion)
}


def measure(metric: Metric, images: Tensor, prompts: list[str]) -> Tensor:
    """A metric of pictures [P, S, 3, H, W], or of videos [P, S, T, 3, H, W]: its mean over frames, or of them if it is one."""
    if images.ndim == 5:
        if getattr(metric, "of_videos", False):
            raise UserError(f"{metric.__name__} is a measure of videos, and these are pictures: leave it out")
        return metric(images, prompts)
    frames = key_frames(images)
    if getattr(metric, "of_videos", False):
        return metric(frames, prompts)
    return torch.stack([metric(frame, prompts) for frame in frames.unbind(2)]).mean(0)
