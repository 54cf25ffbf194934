"""Deterministic solvers of dx/dt = v(x, t), one step each, from t down to s.

All are pure functions  (x, v, t, s, past) -> y  of the state x [*shape], the velocity v there, and the data predictions of
earlier steps,  past = [(t, x0), ...], oldest first, without the present step's.  heun alone takes the velocity function instead
of the past.  `solve` walks a whole grid.  A new solver is a function of this form and an entry in SOLVERS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import expm1, inf, log
from typing import TYPE_CHECKING, Any, TypeAlias

from neighbor_grpo.flow.path import Time, per_row, x0_prediction

if TYPE_CHECKING:
    from torch import Tensor

Past: TypeAlias = "Sequence[tuple[float, Tensor]]"
Velocity: TypeAlias = "Callable[[Tensor, float], Tensor]"
Record: TypeAlias = "Callable[[float, float, Tensor, Tensor, Tensor], Any]"


def euler(x: Tensor, v: Tensor, t: Time, s: Time, past: Past = ()) -> Tensor:
    """Take a step of first order:  y = x - (t - s)·v.  On this path it is DDIM and first-order DPM-Solver++.

    >>> from neighbor_grpo.flow.lazy import torch
    >>> euler(torch.tensor([1.0]), torch.tensor([2.0]), 1.0, 0.75)
    tensor([0.5000])
    """
    return x - per_row(t - s, x) * v


def heun(x: Tensor, v: Tensor, t: float, s: float, velocity: Velocity) -> Tensor:
    """Take a step of second order, two velocities:  y = x - (t - s)·(v + velocity(x - (t - s)·v, s)) / 2.

    >>> from neighbor_grpo.flow.lazy import torch
    >>> heun(torch.tensor([1.0]), torch.tensor([1.0]), 1.0, 0.0, lambda x, t: x)  # dx/dt = x at x = 1
    tensor([0.5000])
    """
    return x - (t - s) * (v + velocity(x - (t - s) * v, s)) / 2


def log_snr(t: float) -> float:
    """Return lambda(t) = log((1 - t) / t), the logarithm of data over noise: -inf at t = 1, inf at t = 0.

    >>> log_snr(0.5)
    0.0
    """
    return log((1 - t) / t) if 0 < t < 1 else (inf if t <= 0 else -inf)


def dpmpp_2m(x: Tensor, v: Tensor, t: float, s: float, past: Past = ()) -> Tensor:
    """Take a step of DPM-Solver++(2M), second-order multistep in the data prediction (Lu et al., arXiv 2211.01095, Alg. 2).

        y = (s/t)·x - (1 - s)·(e^{-h} - 1)·D,   D = x0 + (x0 - x0_prev) / (2r)
        h = lambda(s) - lambda(t),   r = (lambda(t) - lambda(t_prev)) / h

    Without a past, or with the past at t = 1, where 1/r = 0, it is Euler's step; at s = 0 the step lands on x0.
    """
    if not past or t >= 1 or s <= 0:
        return euler(x, v, t, s)
    h = log_snr(s) - log_snr(t)
    x0, (t1, x01) = x0_prediction(x, v, t), past[-1]
    q = h / (log_snr(t) - log_snr(t1))  # 1/r
    return (s / t) * x - (1 - s) * expm1(-h) * (x0 + (q / 2) * (x0 - x01))


def dpmpp_3m(x: Tensor, v: Tensor, t: float, s: float, past: Past = ()) -> Tensor:
    """Take a step of DPM-Solver++(3M), third-order multistep in the data prediction (the same paper, appendix B).

        y = (s/t)·x + (1 - s)·[ -(e^{-h} - 1)·x0 + ((e^{-h} - 1)/h + 1)·D1 - 2·((e^{-h} - 1 + h)/h^2 - 1/2)·D2 ]

    with D1 = h·x0' and D2 = h^2·x0''/2 from divided differences over lambda.  Starts with a step of Euler and one of
    dpmpp_2m; at s = 0 the step lands on x0.
    """
    if len(past) < 2 or past[-1][0] >= 1 or s <= 0:
        return dpmpp_2m(x, v, t, s, past)
    h = log_snr(s) - log_snr(t)
    x0, (t1, x01), (t2, x02) = x0_prediction(x, v, t), past[-1], past[-2]
    q0 = h / (log_snr(t) - log_snr(t1))  # 1/r0
    q1 = h / (log_snr(t1) - log_snr(t2))  # 1/r1; 0 when t2 = 1
    d0, d1 = q0 * (x0 - x01), q1 * (x01 - x02)
    first = d0 + (q1 / (q0 + q1)) * (d0 - d1)
    second = (q0 * q1 / (q0 + q1)) * (d0 - d1)
    e = expm1(-h)
    # The factor 2 before the last bracket follows from Taylor's formula and makes the method third order.  The authors' code
    # and diffusers leave it out and measure second order.
    return (s / t) * x + (1 - s) * (-e * x0 + (e / h + 1) * first - 2 * ((e + h) / h**2 - 0.5) * second)


SOLVERS: dict[str, Callable[..., Tensor]] = {"euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m, "dpmpp_3m": dpmpp_3m}


def solve(name: str, velocity: Velocity, x: Tensor, times: Sequence[float], record: Record | None = None) -> Tensor:
    """Integrate x from times[0] to times[-1] by the solver `name`; call `record(t, s, x, v, y)` after every step.

    >>> from neighbor_grpo.flow.lazy import torch
    >>> x0, eps = torch.tensor([3.0]), torch.tensor([1.0])
    >>> solve("euler", lambda x, t: eps - x0, eps, [1.0, 0.5, 0.0])  # a straight path is integrated exactly
    tensor([3.])
    """
    past: list[tuple[float, Tensor]] = []
    for t, s in pairwise(times):
        v = velocity(x, t)
        y = heun(x, v, t, s, velocity) if name == "heun" else SOLVERS[name](x, v, t, s, past)
        if record:
            record(t, s, x, v, y)
        past = [*past[-1:], (t, x0_prediction(x, v, t))]
        x = y
    return x
