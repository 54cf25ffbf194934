"""Metrics: numbers computed from the pixels alone that show when a reward is being hacked.

Compare them with the base model's own values: alone they say little.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from neighbor_grpo.errors import UserError
from neighbor_grpo.files.images import key_frames
from neighbor_grpo.rewards.jpeg import jpeg_bytes
from neighbor_grpo.worlds.scenes.distance import scenes_distance
from neighbor_grpo.worlds.words.distance import words_distance

# (pictures [P, S, 3, H, W] in [0, 1], prompts [P]) -> values [P], or [] for the whole set
Function = Callable[[Tensor, list[str]], Tensor]


@dataclass(frozen=True)
class Metric:
    """Describe a metric: its function and what it takes and returns."""

    name: str
    function: Function
    whole_set: bool = False  # one number for all prompts together, instead of one for each prompt
    of_videos: bool = False  # takes key frames of videos [P, S, F, 3, H, W] instead of pictures

    def measure(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Measure pictures [P, S, 3, H, W] or videos [P, S, T, 3, H, W]; a metric of pictures is averaged over key frames.

        Raises UserError for pictures where the metric needs videos.
        """
        if images.ndim == 5:
            if self.of_videos:
                raise UserError(f"{self.name} measures videos, and these are pictures: leave it out")
            return self.function(images, prompts)
        frames = key_frames(images)
        if self.of_videos:
            return self.function(frames, prompts)
        return torch.stack([self.function(frame, prompts) for frame in frames.unbind(2)]).mean(0)


def diversity(images: Tensor, prompts: list[str]) -> Tensor:
    """Measure the mean distance between two pictures of one prompt, [P].

    The distance is the root mean square difference of their 16 x 16 thumbnails.
    """
    if images.shape[1] < 2:
        raise UserError("diversity needs several pictures of each prompt: set evaluate.seeds to 2 or more")
    small = F.adaptive_avg_pool2d(images.flatten(0, 1).float(), 16).unflatten(0, images.shape[:2]).flatten(2)
    distance = torch.cdist(small, small) / small.shape[-1] ** 0.5  # [P, S, S]
    return distance.sum((1, 2)) / (distance[0].numel() - distance.shape[1])


def jpeg_size(images: Tensor, prompts: list[str]) -> Tensor:
    """Measure the mean size in bytes as a JPEG of quality 95, [P]."""
    return torch.tensor([[float(jpeg_bytes(image)) for image in row] for row in images]).mean(1)


def _luma(images: Tensor) -> Tensor:
    """Compute the brightness (ITU-R BT.601), [P, S, 3, H, W] -> [P, S, H, W]."""
    return torch.einsum("c,pschw->pshw", torch.tensor([0.299, 0.587, 0.114]), images.float())


def grid_artefacts(images: Tensor, prompts: list[str]) -> Tensor:
    """Measure the power at the frequencies of a grid of 16 pixels, relative to that beside them, [P].

    About 1 where there is no grid.  The power is that of the profile d(x) = mean over y of |I(x + 1, y) - I(x, y)|, where I
    is the brightness, and of the same profile along y.  The frequencies are the multiples of 1/16 below 1/2.  Pictures with
    a side shorter than 64 pixels are measured with a grid of 8 pixels.
    Raises UserError for pictures smaller than 32 pixels.
    """
    # 16 pixels are one token of a transformer with patches of 2 over a VAE of factor 8: seams and patch patterns that please
    # a reward raise this first.  The absolute value shows seams whatever their sign.
    ratio = []
    for rows in (_luma(images), _luma(images).transpose(-1, -2)):
        profile = rows.diff(dim=-1).abs().mean(-2)  # [P, S, length]
        period = 16 if rows.shape[-1] >= 64 else 8
        length = profile.shape[-1] // period * period  # whole periods put the grid exactly on bins
        if length < 3 * period:
            raise UserError("grid_artefacts needs pictures of at least 32 x 32 pixels: leave it out")
        power = torch.fft.rfft(profile[..., :length] * torch.hann_window(length)).abs().square().clamp_min(1e-12).log()
        at = torch.arange(length // period, length // 2 - 2, length // period)
        # The neighbours lie two bins away, outside the window's main lobe.  Logarithms are averaged because the logarithm of a
        # natural picture's spectrum is nearly straight over these few bins.
        ratio.append((power[..., at] - (power[..., at - 2] + power[..., at + 2]) / 2).mean(-1))
    return ((ratio[0] + ratio[1]) / 2).mean(1).exp()


def saturation(images: Tensor, prompts: list[str]) -> Tensor:
    """Measure the mean over pixels of the largest minus the smallest channel, [P].

    Oversaturated colours raise it.
    """
    return (images.amax(2) - images.amin(2)).float().mean((1, 2, 3))


def sharpness(images: Tensor, prompts: list[str]) -> Tensor:
    """Measure the root mean square of the brightness's Laplacian, [P].

    Grain and sharpened edges raise it, lost detail lowers it.
    """
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    edges = F.conv2d(_luma(images).flatten(0, 1).unsqueeze(1), kernel).unflatten(0, images.shape[:2])
    return edges.square().mean((2, 3, 4)).sqrt().mean(1)


def motion(videos: Tensor, prompts: list[str]) -> Tensor:
    """Measure the mean absolute difference between one key frame and the next, [P].

    A frozen video has 0.  videos [P, S, F, 3, H, W]: the key frames (`files.images.key_frames`).
    """
    return videos.float().diff(dim=2).abs().mean((1, 2, 3, 4, 5))


_ALL = (
    Metric("diversity", diversity),
    Metric("jpeg_size", jpeg_size),
    Metric("scenes_distance", scenes_distance, whole_set=True),
    Metric("words_distance", words_distance, whole_set=True),
    Metric("grid_artefacts", grid_artefacts),
    Metric("saturation", saturation),
    Metric("sharpness", sharpness),
    Metric("motion", motion, of_videos=True),
)
METRICS = {metric.name: metric for metric in _ALL}
