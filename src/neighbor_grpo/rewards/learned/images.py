"""From pictures to the inputs of vision towers: resize, bring to a square, normalise, all as tensor functions.

The published scorers resize 8-bit pictures with Pillow, whose bicubic filter widens with the reduction (antialiasing) and
whose results are cut to the range of a pixel.  Here the same filter is applied to floats and the result is cut to [0, 1];
only the rounding to 1/255 is left out, for it would tie near-equal pictures.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from neighbor_grpo.errors import UserError

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the pictures that OpenAI's CLIP was trained on; every scorer here uses them
STD = (0.26862954, 0.26130258, 0.27577711)
_SLACK = 1e-3  # a decoder may leave [0, 1] by a rounding error, never by a visible step


def check_pictures(images: Tensor) -> Tensor:
    """The pictures as fp32 within [0, 1].  Raises UserError unless they are finite [n, 3, H, W], H and W > 0, in [0, 1]."""
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise UserError(f"pictures are tensors [n, 3, height, width], not {list(images.shape)}")
    if not images.is_floating_point():
        raise UserError(f"pictures are floats in [0, 1], not {images.dtype}: divide bytes by 255")
    if not len(images):
        return images.float()
    low, high = (value.item() for value in images.float().aminmax())  # both NaN if any value is
    if not (low >= -_SLACK and high <= 1 + _SLACK):
        raise UserError(f"pictures are finite numbers in [0, 1], not from {low:g} to {high:g}")
    return images.float().clamp(0, 1)


def _resize(images: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(images, (height, width), mode="bicubic", antialias=True).clamp(0, 1)


def pad(images: Tensor, size: int) -> Tensor:
    """The whole picture, its longest side `size`, centred on a black square (open_clip's "longest").  [n, 3, size, size]

    Black is the pixel value 0, set before `normalise`; of an odd margin the larger part is at the right and the bottom.
    """
    scale = size / max(images.shape[2:])
    height, width = (max(round(side * scale), 1) for side in images.shape[2:])
    top, left = (size - height) // 2, (size - width) // 2
    return F.pad(_resize(images, height, width), (left, size - width - left, top, size - height - top))


def crop(images: Tensor, size: int) -> Tensor:
    """The centre square, the shortest side resized to `size`.  [n, 3, size, size]

    The other side is cut down to whole pixels, and so is the margin (torchvision rounds an odd margin's half to even).
    """
    short = min(images.shape[2:])
    height, width = (size * side // short for side in images.shape[2:])
    top, left = (height - size) // 2, (width - size) // 2
    return _resize(images, height, width)[:, :, top : top + size, left : left + size]


def squash(images: Tensor, size: int) -> Tensor:
    """The whole picture on a square, whatever its aspect.  [n, 3, size, size]"""
    return _resize(images, size, size)


def normalise(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(value, device=images.device)[:, None, None] for value in (MEAN, STD))
    return (images - mean) / std
