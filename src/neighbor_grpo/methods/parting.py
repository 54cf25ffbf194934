"""Where the samples of a prompt part: one path from one noise, which a stochastic transition divides into G on its way.

    x_1 = eps*,  one noise per prompt
    x = x_{t_k}        by a deterministic solver: k forwards for the whole group, and one for v at x
    y_i = mean(x, v) + std·z_i,   i = 1 ... G,  by a kernel of flow.sde; every y_i is a state of the flow at s = t_{k+1}
    x_0^(i)            by the same solver from y_i, its history started anew: G·(N - k - 1) forwards

The later a group parts, the less it costs and the more alike its samples are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from neighbor_grpo.flow.lazy import torch
from neighbor_grpo.flow.sde import Kernel
from neighbor_grpo.flow.solvers import Velocity
from neighbor_grpo.flow.streams import Iteration
from neighbor_grpo.methods.tree import Noise, Tree, diffuse, grow

if TYPE_CHECKING:
    from torch import Tensor


def partings(part_from: float, part_to: float, num_steps: int) -> range:
    """Return the transitions between two fractions of the grid, never the last.  Raises ValueError where there are none."""
    found = range(round(part_from * num_steps), min(round(part_to * num_steps), num_steps - 1))
    if not found:
        raise ValueError(
            f"part_from ({part_from:g}) and part_to ({part_to:g}) hold no transition of num_steps (N = {num_steps}) that may "
            "part (the last never does): set them further apart"
        )
    return found


def place_of(partings: range, iteration: Iteration) -> int:
    """Draw the transition that parts, the same for every group of an iteration."""
    return partings[int(torch.randint(len(partings), (), generator=iteration.generator()))]


def neighbours(noise: Noise, count: int, sigma: float) -> Tensor:
    """Return neighbouring noises (Neighbor GRPO's Eq. 7):  sqrt(1 - sigma^2)·eps* + sigma·delta^(i).  [P, count, *latent]"""
    shared, own = noise(1), noise(count)
    return (1 - sigma**2) ** 0.5 * shared + sigma * own


def part(
    velocity: Velocity,
    noise: Noise,
    times: Sequence[float],
    k: int,
    count: int,
    kernel: Kernel,
    solver: str,
    rest: Callable[[Tree, Velocity, Sequence[float], str], Tree] = grow,
) -> Tree:
    """Return P trees that part into `count` at transition k and are deterministic elsewhere.

    rest: `grow` keeps all states after the parting, `finish` the finished latents alone.
    """
    path = grow(Tree(noise(1)), velocity, times[: k + 1], solver)
    parted = diffuse(path, velocity, times[k : k + 2], kernel, noise, {0: count})
    return rest(parted, velocity, times[k + 1 :], solver)
