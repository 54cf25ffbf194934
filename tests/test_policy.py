import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import norm

from neighbor_grpo.methods.policy import clipped_fraction, clipped_surrogate, gaussian_log_prob, leap_log_prob


@pytest.mark.parametrize("temperature", [1.0, 7.5, "dim"])
def test_leap_log_prob_against_scipy(temperature):
    choices, anchor = torch.randn(3, 5, 4, 2), torch.randn(3, 4, 2)
    ours = leap_log_prob(choices, anchor, temperature)
    squared = np.square(choices.double().numpy() - anchor.double().numpy()[:, None]).sum((2, 3))
    theirs = log_softmax(-squared / (8 if temperature == "dim" else temperature), axis=1)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-5)


def test_leap_log_prob_is_fp32_whatever_comes_in():
    choices, anchor = torch.randn(2, 3, 64).bfloat16(), torch.randn(2, 64).bfloat16()
    assert leap_log_prob(choices, anchor, "dim").dtype == torch.float32
    torch.testing.assert_close(leap_log_prob(choices, anchor, "dim"), leap_log_prob(choices.float(), anchor.float(), "dim"))


def test_leap_log_prob_prefers_the_nearest_and_sums_to_one():
    choices = torch.tensor([[[0.0], [1.0], [3.0]]])
    p = leap_log_prob(choices, torch.tensor([[0.9]]), 1.0).exp()
    assert p.argmax() == 1
    assert float(p.sum()) == pytest.approx(1.0)


def test_gaussian_log_prob_is_the_mean_over_dimensions():
    y, mean, std = torch.randn(4, 5, 6, 3), torch.randn(4, 6, 3), torch.rand(4) + 0.1
    expected = norm.logpdf(y.numpy(), mean.numpy()[:, None], std.numpy()[:, None, None, None]).mean((2, 3))
    np.testing.assert_allclose(gaussian_log_prob(y, mean, std).numpy(), expected, rtol=1e-4)


def test_clipped_surrogate_by_hand():
    """rho = 2 and 1/2 with c = 0.1: gains are capped at 1.1, losses at 0.9, the pessimistic side is kept."""
    log2 = float(np.log(2))
    new, old = torch.tensor([[log2, -log2, log2, -log2]]), torch.zeros(1, 4)
    adv = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    assert float(clipped_surrogate(new, old, adv, 0.1)) == pytest.approx(1.1 + 0.5 - 2.0 - 0.9)
    assert float(clipped_fraction(new, old, adv, 0.1)) == pytest.approx(0.5)
    assert float(clipped_fraction(new, old, torch.zeros(1, 4), 0.1)) == 0.0
