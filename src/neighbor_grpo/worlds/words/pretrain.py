"""The bundled model `words`: 12 image tokens and 12 text tokens, 3.6 M parameters and a VAE of 0.7 M.

Its VAE halves the picture three times.  One that halves it twice leaves 48 image tokens, which makes a step twice as
dear.  Letters are tokens, so that the model can learn to spell words that it never saw.

It learns from easy pictures first.  Where words lie at any place in any typeface, the mean picture of a word says hardly
anything of its letters, and a model that begins so spells nothing after ten thousand steps.  In one place and typeface it
spells soon, and what it has learned of letters lasts while places and typefaces are added, if the batches are large.
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from neighbor_grpo.worlds import components
from neighbor_grpo.worlds.pretrain import Recipe
from neighbor_grpo.worlds.words.render import render_all
from neighbor_grpo.worlds.words.world import COLOURS, HEIGHT, LETTERS, WIDTH, sample_specs

PART = 1000  # pictures that a process draws at a time
EASY = 0.4  # share of the pictures without variety; in as many more it grows, and the others have all of it
CLIP_LENGTH, T5_LENGTH = 24, 12  # the longest prompts; CLIP takes the other words letter by letter too


def build_text() -> components.Text:
    """Build two encoders: letters are CLIP's tokens, which knows no capitals; letters and the prompts' other words are T5's."""
    words = ("the", "word", "in", *COLOURS)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + ['"']
    special = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = [*special, *letters, *(f"{letter}</w>" for letter in letters)]
    pieces = [*(f"▁{word}" for word in words), "▁", '▁"', '"', *LETTERS, *LETTERS.upper()]
    numbered = {token: n for n, token in enumerate(vocabulary)}
    return components.build_text(numbered, [], CLIP_LENGTH, pieces, T5_LENGTH)


def pictures(n: int, rng: np.random.Generator) -> tuple[list[str], Tensor]:
    """Draw n training prompts and their pictures [n, 3, HEIGHT, WIDTH], uint8, easy ones first."""
    specs = sample_specs(n, rng, held_out=False)
    varieties = np.clip(np.arange(n) / (EASY * n) - 1, 0, 1)
    parts = [specs[at : at + PART] for at in range(0, n, PART)]
    seeds = rng.bit_generator.seed_seq.spawn(len(parts))  # type: ignore[attr-defined]  # one of each part: any processes will do
    drawn = np.empty((n, 3, HEIGHT, WIDTH), np.uint8)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:  # not forked: a GPU may be in use
        coming = pool.map(render_all, parts, seeds, np.split(varieties, range(PART, n, PART)))
        for at, part in zip(range(0, n, PART), track(coming, "pictures", len(parts)), strict=True):
            drawn[at : at + PART] = part
    return [spec.prompt for spec in specs], torch.from_numpy(drawn)


RECIPE = Recipe(
    pictures,
    vae=lambda: components.build_vae((16, 16, 32, 64), 16, (HEIGHT, WIDTH)),
    transformer=lambda: components.build_transformer(16, heads=5),
    text=build_text,
    ramp=0.65,
)
