"""The bundled model `scenes`: sizes for a laptop, 16 image tokens and 12 text tokens, 2.2 M parameters and a VAE of 0.7 M."""

import re

import numpy as np
import torch
from torch import Tensor

from neighbor_grpo.worlds import components
from neighbor_grpo.worlds.pretrain import Recipe
from neighbor_grpo.worlds.scenes.render import render
from neighbor_grpo.worlds.scenes.world import SIZE, all_specs, sample_scene, sample_specs

TEXT_LENGTH = 12
FAMILY_SHARES = (0.15, 0.25, 0.25, 0.35)  # of the training prompts: more of the harder families


def build_text() -> components.Text:
    """Build two encoders whose tokens are the words of the prompts; other words are unknown to them."""
    words = sorted(set(re.findall(r"\w+", " ".join(spec.prompt for spec in all_specs()))))
    return components.build_text(*components.word_tokens(words), TEXT_LENGTH, [f"▁{word}" for word in words], TEXT_LENGTH)


def pictures(n: int, rng: np.random.Generator) -> tuple[list[str], Tensor]:
    """Draw n training prompts and their pictures [n, 3, SIZE, SIZE], uint8."""
    specs = sample_specs(n, rng, held_out=False, shares=FAMILY_SHARES)
    drawn = [(render(sample_scene(spec, rng), rng) * 255).round().astype(np.uint8) for spec in specs]
    return [spec.prompt for spec in specs], torch.from_numpy(np.stack(drawn))


RECIPE = Recipe(
    pictures,
    vae=lambda: components.build_vae((16, 16, 32, 64), 16, SIZE),
    transformer=lambda: components.build_transformer(16, heads=4),
    text=build_text,
)
