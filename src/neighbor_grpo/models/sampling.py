"""Pictures and videos: drawn in batches from fixed noise and decoded.  P prompts, S pictures of each."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from neighbor_grpo.flow.solvers import Velocity, solve
from neighbor_grpo.flow.streams import generator
from neighbor_grpo.models.registry import Cond, FlowModel, move, take


def batched_velocity(model: FlowModel, cond: Cond, batch: int) -> Velocity:
    """velocity(x [P, N, *latent], t) of P prompts with their conditioning, at most `batch` rows at a time; x lies anywhere."""

    @lru_cache(maxsize=1)  # the conditioning of every row: the same from step to step while N is
    def parts(n: int) -> list[Cond]:
        return [take(cond, rows) for rows in torch.arange(len(cond[0])).repeat_interleave(n).split(batch)]

    def velocity(x: Tensor, t: float) -> Tensor:
        rows = x.flatten(0, 1).split(batch)
        v = [model.velocity(part, t, c).to(x.device) for part, c in zip(rows, parts(x.shape[1]), strict=True)]
        return torch.cat(v).view_as(x)

    return velocity


def decode(model: FlowModel, x: Tensor, batch: int) -> Tensor:
    """Pictures [P, G, 3, H, W] on the CPU of latents [P, G, *latent]; of videos [P, G, T, 3, H, W]."""
    return model.decode(x.flatten(0, 1), batch).unflatten(0, x.shape[:2])


@torch.no_grad()
def sample(
    model: FlowModel, cond: Cond, noise: Tensor, num_steps: int, solver: str, rows: int = 96, decode_rows: int = 16
) -> Tensor:
    """Pictures [P, S, 3, H, W] or videos [P, S, T, 3, H, W] on the CPU from noise [P, S, *latent]."""
    velocity = batched_velocity(model, move(cond, noise.device), rows)
    return decode(model, solve(solver, velocity, noise, model.times(num_steps)), decode_rows)


def fixed_noise(model: FlowModel, prompts: Sequence[int], seeds: int) -> Tensor:
    """The same noise for the same prompt number and seed, whatever else is sampled.  [P, S, *latent]"""
    return torch.stack([torch.cat([model.noise(1, generator(seed, p)) for seed in range(seeds)]) for p in prompts])
