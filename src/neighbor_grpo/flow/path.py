"""The notation: the straight path x_t = (1 - t)·x0 + t·eps from data (t = 0) to noise (t = 1), and v = eps - x0.

Everywhere in this package  t, s  are the times a step goes from and to (1 = noise, s < t),  x, y  the states there,
v = v_theta(x, t)  the model's velocity.  A time is a float, or one per row as a tensor [R].
"""

from torch import Tensor

Time = float | Tensor


def per_row(t: Time, x: Tensor) -> Time:
    """Times [R] shaped to multiply rows x [R, *latent]; a float passes through."""
    return t.reshape(-1, *(1,) * (x.ndim - 1)) if isinstance(t, Tensor) and t.ndim else t


def x0_prediction(x: Tensor, v: Tensor, t: Time) -> Tensor:
    """Data the model predicts at x:  x0 = x - t·v."""
    return x - per_row(t, x) * v


def eps_prediction(x: Tensor, v: Tensor, t: Time) -> Tensor:
    """Noise the model predicts at x:  eps = x + (1 - t)·v."""
    return x + (1 - per_row(t, x)) * v


def shift_time(t: Time, m: float) -> Time:
    """Static time shift  t <- m·t / (1 + (m - 1)·t);  m > 1 spends more of the grid on noise."""
    return m * t / (1 + (m - 1) * t)
