"""Where the samples of a prompt part: one path from one noise, which a stochastic transition divides into G on its way.

    x_1 = eps*,  one noise per prompt
    x = x_{t_k}        by a deterministic solver: k forwards for the whole group, and one for v at x
    y_i = mean(x, v) + std·z_i,   i = 1 ... G,  by a kernel of flow.sde; every y_i is a state of the flow at s = t_{k+1}
    x_0^(i)            by the same solver from y_i, its history started anew: G·(N - k - 1) forwards

The later a group parts, the less it costs and the more alike its samples are.
"""

from __future__ import annotations

from collections.abc import Sequence

from neighbor_grpo.flow.sde import Kernel
from neighbor_grpo.flow.solvers import Velocity
from neighbor_grpo.methods.tree import Noise, Tree, diffuse, grow


def part(velocity: Velocity, noise: Noise, times: Sequence[float], k: int, count: int, kernel: Kernel, solver: str) -> Tree:
    """Return P trees that part into `count` at transition k and are deterministic elsewhere."""
    path = grow(Tree(noise(1)), velocity, times[: k + 1], solver)
    parted = diffuse(path, velocity, times[k : k + 2], kernel, noise, {0: count})
    return grow(parted, velocity, times[k + 1 :], solver)
