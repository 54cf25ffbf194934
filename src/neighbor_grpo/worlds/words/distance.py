"""The distance of pictures to the renderer's own."""

import numpy as np
from torch import Tensor

from neighbor_grpo.worlds.distance import renderer_distance
from neighbor_grpo.worlds.words.render import render
from neighbor_grpo.worlds.words.world import parse

BANDWIDTH = 2.0


def words_distance(images: Tensor, prompts: list[str]) -> Tensor:
    """Measure the kernel distance to the renderer's words of the same prompts; see `renderer_distance`."""
    return renderer_distance(images, prompts, _draw, BANDWIDTH)


def _draw(prompt: str, rng: np.random.Generator) -> np.ndarray:
    return render(parse(prompt), rng)
