"""Pictures [3, H, W] and videos [T, 3, H, W] in [0, 1]: as bytes, as files, as key frames, and side by side.

A file is a PNG.  A video is an animated PNG, which is lossless too and plays in a browser.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps, ImageSequence
from torch import Tensor

from neighbor_grpo.errors import UserError

FRAMES = 8  # key frames, which stand for a video where pictures are scored
RATE = 16  # frames a second of an animated file; pipelines use 16 to 24 and do not record which


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


def read_frames(file: Path) -> list[Image.Image]:
    """Read a picture, or the frames of an animated one, in RGB and as viewers show them.

    They turn it as its camera was held (EXIF), and lay it over white where it is transparent.  Raises UserError if it cannot be
    read.
    """
    try:
        with Image.open(file) as image:
            return [_rgb(ImageOps.exif_transpose(frame)) for frame in ImageSequence.Iterator(image)]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's ways to say that it is broken
        raise UserError(f"{file} cannot be read as a picture: {error}") from error


def _rgb(image: Image.Image) -> Image.Image:
    """Turn a picture of any mode into RGB; Pillow would cut off the values of 16 bits at 255."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray(((values.clip(0, 2**16 - 1) + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def gallery(columns: dict[str, Tensor], prompts: Sequence[str], height: int = 128) -> Image.Image:
    """Draw a page with a row for each prompt and a column of S pictures for each title, for instance before and after.

    Pictures are [P, S, 3, H, W].  Videos [P, S, T, 3, H, W] are shown by their first, middle and last frames.
    """
    columns = {title: strips(images) if images.ndim == 6 else images for title, images in columns.items()}
    gap, caption = 8, 18
    first = next(iter(columns.values()))
    seeds, width = first.shape[1], round(height * first.shape[-1] / first.shape[-2])
    block = seeds * (width + 2) + gap
    page = Image.new("RGB", (gap + block * len(columns), caption + len(prompts) * (height + caption)), "white")
    draw = ImageDraw.Draw(page)
    for c, (title, images) in enumerate(columns.items()):
        left = gap + c * block
        draw.text((left, 2), title, fill="black")
        for p, prompt in enumerate(prompts):
            top = caption + p * (height + caption)
            if c == 0:
                draw.text((left, top + height + 2), prompt[:160], fill="dimgray")
            for s in range(seeds):
                page.paste(
                    to_pil(images[p, s]).resize((width, height), Image.Resampling.LANCZOS), (left + s * (width + 2), top)
                )
    return page


def strips(videos: Tensor) -> Tensor:
    """Put three frames of each video side by side: [P, S, T, 3, H, W] -> [P, S, 3, H, 3 W]."""
    frames = videos.shape[2]
    return torch.cat([videos[:, :, at] for at in (0, frames // 2, frames - 1)], -1)
