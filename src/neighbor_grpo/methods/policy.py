"""Log-probabilities and the clipped objective: pure functions, in fp32 whatever comes in.

R rows to train on, C choices in each, D scalars in one latent.
"""

from typing import Literal

import torch
from torch import Tensor

from neighbor_grpo.flow.path import per_row


def leap_log_prob(choices: Tensor, anchor: Tensor, temperature: float | Literal["dim"]) -> Tensor:
    """Surrogate leaping policy (Neighbor GRPO Eq. 8):  log_softmax_i( -||choice_i - anchor||^2 / tau ).

    choices [R, C, *latent], anchor [R, *latent] -> [R, C].  tau = D for "dim", the mean over dimensions.
    """
    distance = (choices.float() - anchor.float().unsqueeze(1)).flatten(2).square()  # [R, C, D]
    squared = distance.mean(-1) if temperature == "dim" else distance.sum(-1) / temperature
    return torch.log_softmax(-squared, dim=-1)


def gaussian_log_prob(y: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Mean over the latent's dimensions of log N(y; mean, std^2).  y, mean [R, *latent], std [R] -> [R]

    The mean and not the sum, as all the SDE methods do: their clip range of 1e-4 presumes it.
    """
    y, mean, std = y.float(), mean.float(), std.float()
    z = (y - mean) / per_row(std, y)
    return -0.5 * z.square().flatten(1).mean(-1) - std.log() - 0.5 * torch.log(torch.tensor(2 * torch.pi))


def clipped_surrogate(log_prob: Tensor, old_log_prob: Tensor, adv: Tensor, clip: float) -> Tensor:
    """J = sum_i min(A_i·rho_i, A_i·clip(rho_i, 1 - c, 1 + c)), to be maximised (Eq. 9).  [R, C] each -> [R]"""
    rho = (log_prob - old_log_prob).exp()
    return torch.minimum(adv * rho, adv * rho.clamp(1 - clip, 1 + clip)).sum(-1)


def clipped_fraction(log_prob: Tensor, old_log_prob: Tensor, adv: Tensor, clip: float) -> Tensor:
    """Share of the choices with an advantage whose gradient the clip cuts off."""
    rho = (log_prob - old_log_prob).exp()
    cut = ((adv > 0) & (rho > 1 + clip)) | ((adv < 0) & (rho < 1 - clip))
    return cut.sum() / (adv != 0).sum().clamp_min(1)
