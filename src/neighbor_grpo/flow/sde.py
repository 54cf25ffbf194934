"""Stochastic steps that keep the flow's marginals, as Gaussian kernels  (x, v, t, s, strength) -> (mean, std).

With noise rate g, the reverse SDE of Neighbor GRPO's Eq. 5 discretised over D = t - s gives
    mean = x - D·v - (g^2·D / (2t))·eps,   std = g·sqrt(D),   y = mean + std·z,  z ~ N(0, I)
where eps = x + (1 - t)·v is the noise the model predicts.  std has the shape of t.  strength = 0 is the Euler step.
cps_sde is of another kind: it keeps the coefficients of the path instead of discretising an SDE.
"""

from collections.abc import Callable
from math import cos, pi, sin

import torch
from torch import Tensor

from neighbor_grpo.flow.path import Time, eps_prediction, per_row, x0_prediction
from neighbor_grpo.flow.solvers import euler

Kernel = Callable[[Tensor, Tensor, Time, Time], tuple[Tensor, Tensor]]  # (x, v, t, s) -> (mean, std)


def _kernel(x: Tensor, v: Tensor, t: Time, s: Time, g: Tensor) -> tuple[Tensor, Tensor]:
    mean = euler(x, v, t, s) - per_row(g**2 * (t - s) / (2 * t), x) * eps_prediction(x, v, t)
    return mean, g * (t - s) ** 0.5


def flow_sde(x: Tensor, v: Tensor, t: Time, s: Time, strength: float) -> tuple[Tensor, Tensor]:
    """Flow-GRPO (arXiv 2505.05470):  g(t) = a·sqrt(t / (1 - t)).

    At t = 1, where the rate is infinite, 1 - s stands in for 1 - t: the first grid point below 1, as there.
    """
    t_, s_ = torch.as_tensor(t, dtype=torch.float32), torch.as_tensor(s, dtype=torch.float32)
    return _kernel(x, v, t, s, strength * (t_ / torch.where(t_ < 1, 1 - t_, 1 - s_)) ** 0.5)


def dance_sde(x: Tensor, v: Tensor, t: Time, s: Time, strength: float) -> tuple[Tensor, Tensor]:
    """DanceGRPO (arXiv 2505.07818):  g = eta, constant."""
    return _kernel(x, v, t, s, torch.full_like(torch.as_tensor(t, dtype=torch.float32), strength))


def cps_sde(x: Tensor, v: Tensor, t: Time, s: Time, strength: float) -> tuple[Tensor, Tensor]:
    """Coefficients-preserving sampling, Flow-CPS (arXiv 2509.05952), strength eta in [0, 1]:

        mean = (1 - s)·x0 + s·cos(eta·pi/2)·eps,   std = s·sin(eta·pi/2)

    A share of the predicted noise is exchanged for fresh noise, so that y carries exactly s of noise at any step length.
    """
    s_ = torch.as_tensor(s, dtype=torch.float32)
    data, kept = per_row(1 - s_, x), per_row(s_ * cos(strength * pi / 2), x)
    return data * x0_prediction(x, v, t) + kept * eps_prediction(x, v, t), s_ * sin(strength * pi / 2)


KERNELS = {"flow": flow_sde, "dance": dance_sde, "cps": cps_sde}
