"""The bundled model `words`: 48 image tokens and 16 text tokens, 3.4 M parameters and a VAE of 0.7 M.

Its VAE halves the picture twice only, so that thin letters stay readable, and letters are tokens, so that it can learn to
spell words that it never saw.
"""

import numpy as np
import torch
from torch import Tensor

from neighbor_grpo.worlds import pretrain
from neighbor_grpo.worlds.words.render import render
from neighbor_grpo.worlds.words.world import COLOURS, HEIGHT, LETTERS, WIDTH, sample_specs

CLIP_LENGTH, T5_LENGTH = 32, 16  # CLIP takes the other words letter by letter too


def build_text() -> pretrain.Text:
    """Build two encoders: letters are CLIP's tokens, which knows no capitals; letters and the prompts' other words are T5's."""
    words = ("the", "word", "in", *COLOURS)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + ['"']
    special = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = [*special, *letters, *(f"{letter}</w>" for letter in letters)]
    pieces = [*(f"▁{word}" for word in words), "▁", '▁"', '"', *LETTERS, *LETTERS.upper()]
    numbered = {token: n for n, token in enumerate(vocabulary)}
    return pretrain.build_text(numbered, [], CLIP_LENGTH, pieces, T5_LENGTH)


def pictures(n: int, rng: np.random.Generator) -> tuple[list[str], Tensor]:
    """Draw n training prompts and their pictures [n, 3, HEIGHT, WIDTH], uint8."""
    specs = sample_specs(n, rng, held_out=False)
    drawn = np.empty((n, 3, HEIGHT, WIDTH), np.uint8)
    for row, spec in enumerate(specs):
        drawn[row] = (render(spec, rng) * 255).round()
    return [spec.prompt for spec in specs], torch.from_numpy(drawn)


RECIPE = pretrain.Recipe(
    pictures,
    vae=lambda: pretrain.build_vae((16, 32, 64), 4, (HEIGHT, WIDTH)),
    transformer=lambda: pretrain.build_transformer(4, heads=5),
    text=build_text,
)
