"""The renderer: a word in one of the DejaVu typefaces that matplotlib ships, at any place of the picture."""

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import repeat
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from neighbor_grpo.worlds.words.world import BACKGROUND, COLOURS, HEIGHT, WIDTH, Spec

FACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono")
SIZES = (18, 21, 24)  # pixels
_PLAIN = FACES[-1], 21  # what variety 0 looks like
_MARGIN = 2  # pixels kept free at the border


@cache
def _font(face: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf", size)


def render_all(specs: Sequence[Spec], seed: np.random.SeedSequence, varieties: Iterable[float] = repeat(1.0)) -> np.ndarray:
    """Draw words, each with its variety, as bytes [n, 3, HEIGHT, WIDTH]."""
    rng = np.random.default_rng(seed)
    drawn = np.empty((len(specs), 3, HEIGHT, WIDTH), np.uint8)
    for row, (spec, variety) in enumerate(zip(specs, varieties, strict=False)):
        drawn[row] = (render(spec, rng, variety) * 255).round()
    return drawn


def render(spec: Spec, rng: np.random.Generator, variety: float = 1.0) -> np.ndarray:
    """Draw a word [3, HEIGHT, WIDTH] in [0, 1]: typeface, size and place are random, and the whole word is inside.

    variety: from 0, one typeface and size in the middle of the left border, to 1, all of them at any place.
    """
    while True:
        face = FACES[rng.integers(len(FACES))] if rng.random() < variety else _PLAIN[0]
        size = SIZES[rng.integers(len(SIZES))] if rng.random() < variety else _PLAIN[1]
        font = _font(face, size)
        left, top, right, bottom = font.getbbox(spec.text)
        free_x, free_y = WIDTH - 2 * _MARGIN - (right - left), HEIGHT - 2 * _MARGIN - (bottom - top)
        if free_x >= 0 and free_y >= 0:
            break
    x = _MARGIN + round(variety * rng.random() * free_x)
    y = _MARGIN + round((0.5 + variety * (rng.random() - 0.5)) * free_y)
    ink = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(ink).text((x - left, y - top), spec.text, fill=255, font=font)
    cover = np.asarray(ink, np.float32) / 255
    colour = np.array(COLOURS[spec.colour], np.float32)[:, None, None]
    return BACKGROUND + cover * (colour - np.float32(BACKGROUND))
