"""The notation: the straight path x_t = (1 - t)·x0 + t·eps from data (t = 0) to noise (t = 1), and v = eps - x0.

Everywhere in this package  t, s  are the times a step goes from and to (1 = noise, s < t),  x, y  the states there,
v = v_theta(x, t)  the model's velocity.  A time is a float, or one per row as a tensor [R].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from neighbor_grpo.flow.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Time: TypeAlias = "float | Tensor"


def per_row(t: Time, x: Tensor) -> Time:
    """Reshape times [R] so that they multiply rows x [R, *latent]; return a float as it is.

    >>> per_row(torch.tensor([0.5, 1.0]), torch.zeros(2, 3, 4)).shape
    torch.Size([2, 1, 1])
    """
    return t.reshape(-1, *(1,) * (x.ndim - 1)) if isinstance(t, torch.Tensor) and t.ndim else t


def interpolate(x0: Tensor, eps: Tensor, t: Time) -> Tensor:
    """Return the state of the path at time t:  x_t = (1 - t)·x0 + t·eps.

    >>> interpolate(torch.tensor([0.0]), torch.tensor([1.0]), 0.25)
    tensor([0.2500])
    """
    t = per_row(t, x0)
    return (1 - t) * x0 + t * eps


def x0_prediction(x: Tensor, v: Tensor, t: Time) -> Tensor:
    """Return the data that the model predicts at x:  x0 = x - t·v.

    >>> x0, eps = torch.tensor([2.0]), torch.tensor([-1.0])
    >>> x0_prediction(interpolate(x0, eps, 0.5), eps - x0, 0.5)
    tensor([2.])
    """
    return x - per_row(t, x) * v


def eps_prediction(x: Tensor, v: Tensor, t: Time) -> Tensor:
    """Return the noise that the model predicts at x:  eps = x + (1 - t)·v.

    >>> x0, eps = torch.tensor([2.0]), torch.tensor([-1.0])
    >>> eps_prediction(interpolate(x0, eps, 0.5), eps - x0, 0.5)
    tensor([-1.])
    """
    return x + (1 - per_row(t, x)) * v


def shift_time(t: Time, m: float) -> Time:
    """Shift a time:  t <- m·t / (1 + (m - 1)·t);  m > 1 spends more of the grid on noise.

    >>> shift_time(0.5, 3.0)
    0.75
    """
    return m * t / (1 + (m - 1) * t)
