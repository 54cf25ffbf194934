"""Pictures and videos from fixed noise, drawn and decoded in batches.  P prompts, S pictures of each."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from neighbor_grpo.flow.solvers import Velocity, solve
from neighbor_grpo.flow.streams import generator
from neighbor_grpo.models.conditioning import Cond
from neighbor_grpo.models.family import Family


def batched_velocity(model: Family, cond: Cond, batch: int) -> Velocity:
    """Return velocity(x [P, N, *latent], t) of P prompts, which runs at most `batch` rows at once.

    x may lie on any device, and v lies there too.
    """

    @lru_cache(maxsize=1)  # the conditioning of every row is the same from step to step while N is
    def batches(n: int) -> list[Cond]:
        return [cond.take(rows) for rows in torch.arange(len(cond)).repeat_interleave(n).split(batch)]

    def velocity(x: Tensor, t: float) -> Tensor:
        rows = x.flatten(0, 1).split(batch)
        v = [model.velocity(some, t, own).to(x.device) for some, own in zip(rows, batches(x.shape[1]), strict=True)]
        return torch.cat(v).view_as(x)

    return velocity


def decode(model: Family, x: Tensor, batch: int) -> Tensor:
    """Decode latents [P, G, *latent] to pictures [P, G, 3, H, W] or videos [P, G, T, 3, H, W], on the CPU."""
    return model.decode(x.flatten(0, 1), batch).unflatten(0, x.shape[:2])


@torch.no_grad()
def sample(
    model: Family, cond: Cond, noise: Tensor, num_steps: int, solver: str, rows: int = 96, decode_rows: int = 16
) -> Tensor:
    """Draw pictures [P, S, 3, H, W] or videos [P, S, T, 3, H, W], on the CPU, from noise [P, S, *latent].

    rows, decode_rows: batch sizes of the transformer and of the VAE.
    """
    velocity = batched_velocity(model, cond.to(noise.device), rows)
    return decode(model, solve(solver, velocity, noise, model.times(num_steps)), decode_rows)


def fixed_noise(model: Family, prompts: Sequence[int], seeds: int) -> Tensor:
    """Draw noise [P, S, *latent] that depends only on the number of the prompt and the seed."""
    return torch.stack([torch.cat([model.noise(1, generator(seed, p)) for seed in range(seeds)]) for p in prompts])
