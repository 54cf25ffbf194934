"""Pictures [3, H, W] and videos [T, 3, H, W] in [0, 1]: as bytes, as files, as key frames, and side by side.

A file is a PNG.  A video is an animated PNG, which is lossless too and plays in a browser.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from neighbor_grpo.files.frames import RATE, read_frames

FRAMES = 8  # key frames, which stand for a video where pictures are scored


def to_bytes(x: Tensor) -> Tensor:
    """Round to uint8, on the CPU."""
    return (x.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)


def key_frames(videos: Tensor) -> Tensor:
    """Select at most FRAMES frames [..., T, 3, H, W], evenly spaced from the first to the last."""
    total = videos.shape[-4]
    return videos[..., torch.linspace(0, total - 1, min(total, FRAMES)).round().long(), :, :, :]


def to_pil(image: Tensor) -> Image.Image:
    """Turn a picture [3, H, W] into PIL's."""
    return Image.fromarray(to_bytes(image).permute(1, 2, 0).numpy())


def save_png(x: Tensor, file: Path) -> None:
    """Save a picture, or a video as an animated PNG."""
    first, *others = [to_pil(frame) for frame in (x if x.ndim == 4 else [x])]
    if not others:
        first.save(file, "PNG")
        return
    # both blends draw an opaque frame alike; alternating them keeps equal frames in a row from becoming one
    blends = [n % 2 for n in range(1 + len(others))]
    first.save(file, "PNG", save_all=True, append_images=others, duration=1000 / RATE, blend=blends)


def read_file(file: Path) -> Tensor:
    """Read a picture of any common format, or every frame of an animated one.  Raises UserError if it cannot be read."""
    x = torch.from_numpy(np.stack([np.array(frame) for frame in read_frames(file)])).permute(0, 3, 1, 2) / 255
    return x if len(x) > 1 else x[0]


def strips(videos: Tensor) -> Tensor:
    """Put three frames of each video side by side: [P, S, T, 3, H, W] -> [P, S, 3, H, 3 W]."""
    frames = videos.shape[2]
    return torch.cat([videos[:, :, at] for at in (0, frames // 2, frames - 1)], -1)
