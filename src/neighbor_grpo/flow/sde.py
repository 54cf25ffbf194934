"""Stochastic steps that keep the flow's marginals, as Gaussian kernels  (x, v, t, s, strength) -> (mean, std).

With noise rate g, the reverse SDE of Neighbor GRPO's Eq. 5 discretised over D = t - s gives
    mean = x - D·v - (g^2·D / (2t))·eps,   std = g·sqrt(D),   y = mean + std·z,  z ~ N(0, I)
where eps = x + (1 - t)·v is the noise that the model predicts.  std has the shape of t.  strength = 0 is the Euler step.
cps_sde, neighbor_sde and churn_sde are of another kind: they keep the coefficients of the path instead of discretising an SDE.
"""

from __future__ import annotations

from collections.abc import Callable
from math import cos, exp, pi, sin
from typing import TYPE_CHECKING, TypeAlias

from neighbor_grpo.flow.lazy import torch
from neighbor_grpo.flow.path import Time, eps_prediction, per_row, x0_prediction
from neighbor_grpo.flow.solvers import euler

if TYPE_CHECKING:
    from torch import Tensor

Kernel: TypeAlias = "Callable[[Tensor, Tensor, Time, Time], tuple[Tensor, Tensor]]"  # (x, v, t, s) -> (mean, std)


def _kernel(x: Tensor, v: Tensor, t: Time, s: Time, g: Tensor) -> tuple[Tensor, Tensor]:
    mean = euler(x, v, t, s) - per_row(g**2 * (t - s) / (2 * t), x) * eps_prediction(x, v, t)
    return mean, g * (t - s) ** 0.5


def flow_sde(x: Tensor, v: Tensor, t: Time, s: Time, strength: float) -> tuple[Tensor, Tensor]:
    """Return mean and std of Flow-GRPO's step (arXiv 2505.05470):  g(t) = a·sqrt(t / (1 - t)),  a = strength.

    At t = 1, where the rate is infinite, 1 - s replaces 1 - t, as in the authors' code: the first grid point below 1.

    >>> x, v = torch.tensor([1.0]), torch.tensor([2.0])
    >>> flow_sde(x, v, 0.5, 0.25, strength=0.0)[0] == euler(x, v, 0.5, 0.25)
    tensor([True])
    >>> flow_sde(x, v, 0.5, 0.25, strength=1.0)[1]  # g(0.5) = 1, std = sqrt(0.25)
    tensor(0.5000)
    """
    t_, s_ = torch.as_tensor(t, dtype=torch.float32), torch.as_tensor(s, dtype=torch.float32)
    return _kernel(x, v, t, s, strength * (t_ / torch.where(t_ < 1, 1 - t_, 1 - s_)) ** 0.5)


def dance_sde(x: Tensor, v: Tensor, t: Time, s: Time, strength: float) -> tuple[Tensor, Tensor]:
    """Return mean and std of DanceGRPO's step (arXiv 2505.07818):  g = strength, constant.

    >>> dance_sde(torch.tensor([1.0]), torch.tensor([2.0]), 0.5, 0.25, strength=0.3)[1]
    tensor(0.1500)
    """
    return _kernel(x, v, t, s, torch.full_like(torch.as_tensor(t, dtype=torch.float32), strength))


def cps_sde(x: Tensor, v: Tensor, t: Time, s: Time, strength: float) -> tuple[Tensor, Tensor]:
    """Return mean and std of coefficients-preserving sampling, Flow-CPS (arXiv 2509.05952), eta = strength in [0, 1].

        mean = (1 - s)·x0 + s·cos(eta·pi/2)·eps,   std = s·sin(eta·pi/2)

    A part of the predicted noise is exchanged for fresh noise, so that y carries exactly s of noise at any step length.

    >>> mean, std = cps_sde(torch.tensor([3.0]), torch.tensor([2.0]), 0.5, 0.25, strength=1.0)
    >>> mean, std  # all of the noise is fresh: 0.75·x0 with x0 = 3 - 0.5·2
    (tensor([1.5000]), tensor(0.2500))
    """
    return _exchanged(x, v, t, s, cos(strength * pi / 2), sin(strength * pi / 2))


def neighbor_sde(x: Tensor, v: Tensor, t: Time, s: Time, strength: float) -> tuple[Tensor, Tensor]:
    """Return mean and std of Neighbor GRPO's neighbourhood (arXiv 2511.16955, Eq. 7) on the predicted noise, sigma = strength.

        y = (1 - s)·x0 + s·( sqrt(1 - sigma^2)·eps + sigma·z ),   sigma in [0, 1]

    It is cps_sde with sin(eta·pi/2) = sigma.

    >>> neighbor_sde(torch.tensor([3.0]), torch.tensor([2.0]), 0.5, 0.25, strength=0.6)  # x0 = 2, eps = 4
    (tensor([2.3000]), tensor(0.1500))
    """
    return _exchanged(x, v, t, s, (1 - strength**2) ** 0.5, strength)


def _exchanged(x: Tensor, v: Tensor, t: Time, s: Time, kept: float, fresh: float) -> tuple[Tensor, Tensor]:
    """Return mean and std where of the noise at s the part `kept` is predicted and the part `fresh` is drawn."""
    s_ = torch.as_tensor(s, dtype=torch.float32)
    return per_row(1 - s_, x) * x0_prediction(x, v, t) + per_row(s_ * kept, x) * eps_prediction(x, v, t), s_ * fresh


def churn_sde(x: Tensor, v: Tensor, t: Time, s: Time, strength: float) -> tuple[Tensor, Tensor]:
    """Return mean and std of a churned Euler step, as in FDFO (arXiv 2603.12893), w = strength.

    The step goes past s to r, and fresh noise brings the state back, signal 1 - s and noise s, with  q = e^w:

        r = s / (s + q·(1 - s)),   mean = (x + (r - t)·v) / (1 + (q - 1)·r),   std = r·sqrt(q^2 - 1) / (1 + (q - 1)·r)

    >>> from math import log
    >>> mean, std = churn_sde(torch.tensor([3.0]), torch.tensor([2.0]), 0.5, 0.5, strength=log(2))
    >>> mean, std  # r = 1/3: (3 - 2/6) / (4/3)
    (tensor([2.]), tensor(0.4330))
    """
    s_, q = torch.as_tensor(s, dtype=torch.float32), exp(strength)
    r = s_ / (s_ + q * (1 - s_))
    back = 1 + (q - 1) * r
    return (x - per_row(t - r, x) * v) / per_row(back, x), r * (q**2 - 1) ** 0.5 / back


KERNELS = {"flow": flow_sde, "dance": dance_sde, "cps": cps_sde, "neighbor": neighbor_sde, "churn": churn_sde}
