"""Inputs of vision towers: pictures are resized, made square and normalised by tensor functions.

The published scorers resize 8-bit pictures with Pillow, whose bicubic filter widens with the reduction (antialiasing) and
whose results are clamped to the range of a pixel.  These functions apply the same filter to floats and clamp to [0, 1].
They leave out the rounding to 1/255, which would give equal scores to nearly equal pictures.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from neighbor_grpo.errors import UserError

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the pictures that OpenAI's CLIP was trained on; all scorers here use them
STD = (0.26862954, 0.26130258, 0.27577711)
_SLACK = 1e-3  # a decoder may leave [0, 1] by a rounding error


def check_pictures(images: Tensor) -> Tensor:
    """Convert pictures to fp32 in [0, 1].  Raises UserError unless they are finite [n, 3, H, W] in [0, 1], H and W > 0."""
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise UserError(f"wrong shape {list(images.shape)} of pictures: give [n, 3, height, width]")
    if not images.is_floating_point():
        raise UserError(f"wrong type {images.dtype} of pictures: give floats in [0, 1], bytes divided by 255")
    if not len(images):
        return images.float()
    low, high = (value.item() for value in images.float().aminmax())  # both NaN if any value is
    if not (low >= -_SLACK and high <= 1 + _SLACK):
        raise UserError(f"pictures have values from {low:g} to {high:g}: give finite numbers in [0, 1]")
    return images.float().clamp(0, 1)


def _resize(images: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(images, (height, width), mode="bicubic", antialias=True).clamp(0, 1)


def pad(images: Tensor, size: int) -> Tensor:
    """Resize the longest side to `size` and centre the picture on a black square (open_clip's "longest").

    Black is the pixel value 0 before `normalise`.  The larger part of an odd margin is at the right and the bottom.
    [n, 3, H, W] -> [n, 3, size, size]
    """
    scale = size / max(images.shape[2:])
    height, width = (max(round(side * scale), 1) for side in images.shape[2:])
    top, left = (size - height) // 2, (size - width) // 2
    return F.pad(_resize(images, height, width), (left, size - width - left, top, size - height - top))


def crop(images: Tensor, size: int) -> Tensor:
    """Resize the shortest side to `size` and cut out the centre: [n, 3, H, W] -> [n, 3, size, size].

    The other side and the margin are rounded down to whole pixels (torchvision rounds an odd margin's half to even).
    """
    short = min(images.shape[2:])
    height, width = (size * side // short for side in images.shape[2:])
    top, left = (height - size) // 2, (width - size) // 2
    return _resize(images, height, width)[:, :, top : top + size, left : left + size]


def squash(images: Tensor, size: int) -> Tensor:
    """Resize whole pictures [n, 3, H, W] to squares [n, 3, size, size], whatever their aspect ratio."""
    return _resize(images, size, size)


def normalise(images: Tensor) -> Tensor:
    """Subtract MEAN from pictures [n, 3, H, W] and divide by STD, channel by channel."""
    mean, std = (torch.tensor(value, device=images.device)[:, None, None] for value in (MEAN, STD))
    return (images - mean) / std
