"""Log-probabilities and the clipped objective: pure functions, computed in fp32.

R rows to train on, C choices in each, D scalars in one latent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from neighbor_grpo.errors import UserError
from neighbor_grpo.flow.lazy import torch
from neighbor_grpo.flow.path import per_row

if TYPE_CHECKING:
    from torch import Tensor


def leap_log_prob(choices: Tensor, anchor: Tensor, temperature: float | Literal["dim"]) -> Tensor:
    """Return the surrogate leaping policy (Neighbor GRPO Eq. 8):  log_softmax_i( -||choice_i - anchor||^2 / tau ).

    choices [R, C, *latent], anchor [R, *latent] -> [R, C].  "dim": tau = D, the mean over dimensions.

    >>> import math
    >>> choices, anchor = torch.tensor([[[0.0], [2.0]]]), torch.tensor([[0.0]])
    >>> leap_log_prob(choices, anchor, 4 / math.log(3)).exp()  # squared distances 0 and 4: odds of 3 to 1
    tensor([[0.7500, 0.2500]])
    """
    distance = (choices.float() - anchor.float().unsqueeze(1)).flatten(2).square()  # [R, C, D]
    squared = distance.mean(-1) if temperature == "dim" else distance.sum(-1) / temperature
    return torch.log_softmax(-squared, dim=-1)


def gaussian_log_prob(choices: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return the mean over the latent's dimensions of log N(choice_i; mean, std^2).

    choices [R, C, *latent], mean [R, *latent], std [R] -> [R, C]

    >>> gaussian_log_prob(torch.zeros(1, 1, 5), torch.zeros(1, 5), torch.ones(1))  # -log sqrt(2 pi), for any dimension
    tensor([[-0.9189]])
    """
    # The mean and not the sum, as in all SDE methods: their clip range of 1e-4 presumes it.
    choices, mean, std = choices.float(), mean.float().unsqueeze(1), std.float()
    z = (choices - mean) / per_row(std, choices)
    return -0.5 * z.square().flatten(2).mean(-1) - std.log().unsqueeze(1) - 0.5 * torch.log(torch.tensor(2 * torch.pi))


def distance_log_prob(choices: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return  -||choice_i - mean||^2, mean over the latent's dimensions: without constants and without 1 / (2·std^2).

    Flow-CPS is published with it.  Its differences are those of gaussian_log_prob times 2·std^2, so transitions of large std
    weigh more.  choices [R, C, *latent], mean [R, *latent] -> [R, C]

    >>> distance_log_prob(torch.ones(1, 1, 5), torch.full((1, 5), 3.0), torch.ones(1))
    tensor([[-4.]])
    """
    return -(choices.float() - mean.float().unsqueeze(1)).square().flatten(2).mean(-1)


DENSITIES = {"gaussian": gaussian_log_prob, "distance": distance_log_prob}


def guarded_log_ratio(choices: Tensor, mean: Tensor, old_mean: Tensor, std: Tensor) -> Tensor:
    """Return GRPO-Guard's log rho = mean over dimensions of z·(mean - old_mean),  z = (choice - old_mean) / std.

    It is (log ratio + mean((mean - old_mean)^2) / (2·std^2))·std: without the ratio's negative drift, and of one scale at all
    transitions (arXiv 2510.22319).  choices [R, C, *latent], mean [R, *latent], std [R] -> [R, C]

    >>> guarded_log_ratio(torch.full((1, 1, 5), 3.0), torch.full((1, 5), 1.5), torch.ones(1, 5), 2 * torch.ones(1))
    tensor([[0.5000]])
    """
    old, moved = old_mean.float().unsqueeze(1), (mean.float() - old_mean.float()).unsqueeze(1)
    return ((choices.float() - old) / per_row(std.float(), choices) * moved).flatten(2).mean(-1)


def gaussian_divergence(mean: Tensor, other: Tensor, std: Tensor) -> Tensor:
    """Return KL(N(mean, std^2) || N(other, std^2)) = ||mean - other||^2 / (2·std^2), mean over dimensions.  -> [R]

    >>> gaussian_divergence(torch.ones(1, 5), torch.zeros(1, 5), 0.5 * torch.ones(1))
    tensor([2.])
    """
    return (mean - other).float().square().flatten(1).mean(1) / (2 * std.float().square())


def clipped_surrogate(log_prob: Tensor, old_log_prob: Tensor, adv: Tensor, clip: float) -> Tensor:
    """Return J = sum_i min(A_i·rho_i, A_i·clip(rho_i, 1 - c, 1 + c)), to be maximised (Eq. 9).  [R, C] each -> [R]

    >>> new, old = torch.tensor([[1.5, 0.5]]).log(), torch.zeros(1, 2)
    >>> clipped_surrogate(new, old, torch.tensor([[1.0, 1.0]]), clip=0.2)  # min(1.5, 1.2) + min(0.5, 0.8)
    tensor([1.7000])
    """
    rho = (log_prob - old_log_prob).exp()
    return torch.minimum(adv * rho, adv * rho.clamp(1 - clip, 1 + clip)).sum(-1)


def spo_surrogate(log_prob: Tensor, old_log_prob: Tensor, adv: Tensor, clip: float) -> Tensor:
    """Return J = sum_i A_i·rho_i - |A_i|/(2c)·(rho_i - 1)^2, to be maximised.  [R, C] each -> [R]

    Its optimum is at rho_i = 1 ± c, where the clipped surrogate becomes flat; beyond it the gradient turns round (SPO,
    arXiv 2401.16025).

    >>> new, old = torch.tensor([[1.2, 0.8]]).log(), torch.zeros(1, 2)
    >>> spo_surrogate(new, old, torch.tensor([[1.0, -1.0]]), clip=0.2)  # 1.2 - 0.1, -0.8 - 0.1
    tensor([0.2000])
    """
    rho = (log_prob - old_log_prob).exp()
    return (adv * rho - adv.abs() / (2 * clip) * (rho - 1).square()).sum(-1)


def moves_out(log_ratio: Tensor, adv: Tensor, divergence: Tensor, limit: float) -> Tensor:
    """Return which choices Flow-DPPO drops: the divergence is at the limit, and rho moves further in the advantage's direction.

    log_ratio, adv [R, C], divergence [R] -> [R, C] bool (arXiv 2606.11025)

    >>> moves_out(torch.tensor([[0.1, -0.1]]), torch.tensor([[1.0, 1.0]]), torch.tensor([1e-4]), limit=1e-5)
    tensor([[ True, False]])
    """
    return (divergence.unsqueeze(1) >= limit) & (log_ratio * adv > 0)


SURROGATES = {"clip": clipped_surrogate, "spo": spo_surrogate}


def clipped_fraction(log_prob: Tensor, old_log_prob: Tensor, adv: Tensor, clip: float) -> Tensor:
    """Return the share of choices with an advantage whose gradient the clip removes, or SPO turns round.

    >>> new, old = torch.tensor([[1.5, 1.0]]).log(), torch.zeros(1, 2)
    >>> clipped_fraction(new, old, torch.tensor([[1.0, -1.0]]), clip=0.2)
    tensor(0.5000)
    """
    rho = (log_prob - old_log_prob).exp()
    cut = ((adv > 0) & (rho > 1 + clip)) | ((adv < 0) & (rho < 1 - clip))
    return cut.sum() / (adv != 0).sum().clamp_min(1)


def ratio_figures(log_prob: Tensor, old_log_prob: Tensor, adv: Tensor, clip: float) -> dict[str, Tensor]:
    """Return the figures of a clipped ratio: |log rho| before the first optimizer step and at most, and the clipped share."""
    new = log_prob.detach()
    largest = (new - old_log_prob).abs().max()
    return {
        "first/ratio/noise_floor": largest,
        "max/ratio/log_max": largest,
        "ratio/clipped": clipped_fraction(new, old_log_prob, adv, clip),
    }


class NoGradientError(UserError):
    """Say that a loss does not depend on any trained weight."""


def with_gradient(loss: Tensor) -> Tensor:
    """Return a loss as it is.  Raises NoGradientError where it has no gradient."""
    if not loss.requires_grad:
        raise NoGradientError("the loss does not depend on any trained weight: compute it from policy(x, t), without detach")
    return loss
