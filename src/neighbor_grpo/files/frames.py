"""Pictures as Pillow has them, without torch: read from files, and side by side on a page.

A picture is a list of one frame, a video a list of several.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps, ImageSequence

from neighbor_grpo.errors import UserError

Frames = Sequence[Image.Image]
RATE = 16  # frames a second of an animated file; pipelines use 16 to 24 and do not record which


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


def gallery(columns: Mapping[str, Sequence[Sequence[Frames]]], prompts: Sequence[str], height: int = 128) -> Image.Image:
    """Draw a page with a row for each prompt and a column of S pictures for each title, for instance before and after.

    A column holds P rows of S pictures.  Videos are shown by their first, middle and last frames.
    """
    gap, caption = 8, 18
    first = next(iter(columns.values()))
    strip = _strip(first[0][0])
    seeds, width = len(first[0]), round(height * strip.width / strip.height)
    block = seeds * (width + 2) + gap
    page = Image.new("RGB", (gap + block * len(columns), caption + len(prompts) * (height + caption)), "white")
    draw = ImageDraw.Draw(page)
    for c, (title, rows) in enumerate(columns.items()):
        left = gap + c * block
        draw.text((left, 2), title, fill="black")
        for p, prompt in enumerate(prompts):
            top = caption + p * (height + caption)
            if c == 0:
                draw.text((left, top + height + 2), prompt[:160], fill="dimgray")
            for s, frames in enumerate(rows[p]):
                shown = _strip(frames).resize((width, height), Image.Resampling.LANCZOS)
                page.paste(shown, (left + s * (width + 2), top))
    return page


def _strip(frames: Frames) -> Image.Image:
    """Put the first, the middle and the last frame of a video side by side; a picture stays as it is."""
    if len(frames) == 1:
        return frames[0]
    shown = [frames[at] for at in (0, len(frames) // 2, len(frames) - 1)]
    width, height = shown[0].size
    strip = Image.new("RGB", (3 * width, height))
    for n, frame in enumerate(shown):
        strip.paste(frame, (n * width, 0))
    return strip
