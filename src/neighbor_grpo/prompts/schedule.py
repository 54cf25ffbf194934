"""Which prompts an iteration trains on."""

from functools import lru_cache

import torch

from neighbor_grpo.flow.streams import generator


@lru_cache(maxsize=4)
def _epoch(prompts: int, seed: int, number: int) -> list[int]:
    return torch.randperm(prompts, generator=generator(seed, number)).tolist()


def scheduled(prompts: int, per_iteration: int, iteration: int, seed: int) -> list[int]:
    """Indices of an iteration's prompts: epochs, each in an order of its own, one after the other."""
    places = range(iteration * per_iteration, (iteration + 1) * per_iteration)
    return [_epoch(prompts, seed, place // prompts)[place % prompts] for place in places]
