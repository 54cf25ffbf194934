"""Stochastic steps that keep the flow's marginals, as Gaussian kernels  (x, v, t, s, strength) -> (mean, std).

With noise rate g, the reverse SDE of Neighbor GRPO's Eq. 5 discretised over D = t - s gives
    mean = x - D·v - (g^2·D / (2t))·eps,   std = g·sqrt(D),   y = mean + std·z,  z ~ N(0, I)
where eps = x + (1 - t)·v is the noise the model predicts.  std has the shape of t.  strength = 0 is the Euler step.
"""

import torch
from torch import Tensor

from neighbor_grpo.path import Time, eps_prediction, per_row
from neighbor_grpo.solvers import euler


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
