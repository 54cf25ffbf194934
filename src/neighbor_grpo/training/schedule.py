"""The prompts of each iteration."""

from functools import lru_cache

import torch

from neighbor_grpo.flow.streams import generator


@lru_cache(maxsize=4)
def _epoch(prompts: int, seed: int, number: int) -> list[int]:
    return torch.randperm(prompts, generator=generator(seed, number)).tolist()


def scheduled(prompts: int, per_iteration: int, iteration: int, seed: int) -> list[int]:
    """Return the indices of an iteration's prompts: one epoch after another, each in an order of its own."""
    places = range(iteration * per_iteration, (iteration + 1) * per_iteration)
    return [_epoch(prompts, seed, place // prompts)[place % prompts] for place in places]
