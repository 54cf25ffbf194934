"""The renderer: a word in one of the DejaVu typefaces that matplotlib ships, at any place of the picture."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from neighbor_grpo.worlds.words.world import BACKGROUND, COLOURS, HEIGHT, WIDTH, Spec

FACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono")
SIZES = range(18, 25)  # pixels
_MARGIN = 2  # pixels kept free at the border


@cache
def _font(face: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf", size)


def render_all(specs: Sequence[Spec], seed: np.random.SeedSequence) -> np.ndarray:
    """Draw words as bytes [n, 3, HEIGHT, WIDTH]."""
    rng = np.random.default_rng(seed)
    drawn = np.empty((len(specs), 3, HEIGHT, WIDTH), np.uint8)
    for row, spec in enumerate(specs):
        drawn[row] = (render(spec, rng) * 255).round()
    return drawn


def render(spec: Spec, rng: np.random.Generator) -> np.ndarray:
    """Draw a word [3, HEIGHT, WIDTH] in [0, 1]: typeface, size and place are random, and the whole word is inside."""
    while True:
        font = _font(FACES[rng.integers(len(FACES))], SIZES[rng.integers(len(SIZES))])
        left, top, right, bottom = font.getbbox(spec.text)
        free_x, free_y = WIDTH - 2 * _MARGIN - (right - left), HEIGHT - 2 * _MARGIN - (bottom - top)
        if free_x >= 0 and free_y >= 0:
            break
    x, y = (_MARGIN + rng.integers(int(free) + 1) for free in (free_x, free_y))
    ink = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(ink).text((x - left, y - top), spec.text, fill=255, font=font)
    cover = np.asarray(ink, np.float32) / 255
    colour = np.array(COLOURS[spec.colour], np.float32)[:, None, None]
    return BACKGROUND + cover * (colour - np.float32(BACKGROUND))
