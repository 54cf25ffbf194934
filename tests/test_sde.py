import math
from itertools import pairwise

import pytest
import torch
from test_solvers import MEAN, SCALE, gaussian_velocity

from neighbor_grpo.flow.sde import KERNELS, churn_sde, cps_sde, dance_sde, flow_sde, neighbor_sde
from neighbor_grpo.flow.solvers import euler


@pytest.mark.parametrize("kernel", KERNELS.values())
def test_without_noise_it_is_the_euler_step(kernel):
    x, v = torch.randn(3, 5), torch.randn(3, 5)
    mean, std = kernel(x, v, 0.6, 0.4, 0.0)
    torch.testing.assert_close(mean, euler(x, v, 0.6, 0.4))
    assert float(std) == 0.0


def test_rates_by_hand():
    """t = 0.8, s = 0.6, x = 1, v = 2: eps = 1.4, Euler 0.6."""
    x, v = torch.ones(1, 1), 2 * torch.ones(1, 1)
    mean, std = dance_sde(x, v, 0.8, 0.6, 0.3)
    assert float(std) == pytest.approx(0.3 * 0.2**0.5)
    assert float(mean) == pytest.approx(0.6 - 0.09 * 0.2 / 1.6 * 1.4)
    mean, std = flow_sde(x, v, 0.8, 0.6, 0.7)
    assert float(std) == pytest.approx(0.7 * 2.0 * 0.2**0.5)
    assert float(mean) == pytest.approx(0.6 - 0.49 * 4 * 0.2 / 1.6 * 1.4)
    _, std = flow_sde(x, v, 1.0, 0.75, 0.7)  # at t = 1 the rate is taken with 1 - s
    assert float(std) == pytest.approx(0.7 * 2.0 * 0.25**0.5)


def test_coefficients_of_cps_by_hand():
    """t = 0.8, s = 0.6, x = 1, v = 2: x0 = -0.6, eps = 1.4; at strength 1/3 cos = sqrt(3)/2, sin = 1/2."""
    mean, std = cps_sde(torch.ones(1, 1), 2 * torch.ones(1, 1), 0.8, 0.6, 1 / 3)
    assert float(std) == pytest.approx(0.3)
    assert float(mean) == pytest.approx(-0.6 * 0.4 + 1.4 * 0.6 * 3**0.5 / 2)


def test_the_neighborhood_is_eq_7_on_the_predicted_noise_and_cps_of_that_angle():
    """t = 0.8, s = 0.6, x = 1, v = 2: x0 = -0.6, eps = 1.4; sigma = 0.6 keeps 0.8 of the noise."""
    x, v = torch.ones(1, 1), 2 * torch.ones(1, 1)
    mean, std = neighbor_sde(x, v, 0.8, 0.6, 0.6)
    assert (float(mean), float(std)) == (pytest.approx(-0.6 * 0.4 + 0.8 * 1.4 * 0.6), pytest.approx(0.36))
    cps_mean, cps_std = cps_sde(x, v, 0.8, 0.6, 2 / math.pi * math.asin(0.6))
    torch.testing.assert_close(mean, cps_mean)
    torch.testing.assert_close(std, cps_std)
    mean, std = neighbor_sde(x, v, 1.0, 0.6, 0.3)  # at t = 1 the predicted noise is x itself
    assert float(mean) == pytest.approx(0.4 * (1 - 2) + 0.6 * 0.91**0.5)


@pytest.mark.parametrize("w", [0.0025, 0.5])
def test_churn_keeps_signal_and_noise_of_the_path(w):
    """Data and noise that the model knows exactly: the mean has 1 - s of the data; the noise that it lacks is drawn."""
    x0, eps, t, s = torch.full((1, 1), 3.0), torch.full((1, 1), 2.0), 0.8, 0.6
    mean, std = churn_sde((1 - t) * x0 + t * eps, eps - x0, t, s, w)
    noise = (float(mean) - (1 - s) * 3) / 2
    assert noise**2 + float(std) ** 2 == pytest.approx(s**2, rel=1e-4) and noise < s
    assert noise == pytest.approx(s * math.exp(-w), rel=1e-4)


@pytest.mark.parametrize("kernel", KERNELS.values())
def test_one_time_for_all_rows_or_one_for_each(kernel):
    x, v = torch.randn(2, 5), torch.randn(2, 5)
    mean, std = kernel(x, v, torch.tensor([0.9, 0.5]), torch.tensor([0.7, 0.2]), 0.4)
    for row, (t, s) in enumerate([(0.9, 0.7), (0.5, 0.2)]):
        alone, alone_std = kernel(x[row : row + 1], v[row : row + 1], t, s, 0.4)
        torch.testing.assert_close(mean[row], alone[0])
        torch.testing.assert_close(std[row], alone_std)


@pytest.mark.parametrize(
    ("kernel", "strength"), [(flow_sde, 0.7), (dance_sde, 0.3), (cps_sde, 0.1), (neighbor_sde, 0.15), (churn_sde, 0.01)]
)
def test_the_marginal_is_kept(kernel, strength):
    """50,000 paths of 200 stochastic steps end where the ODE's do: at N(MEAN, SCALE^2)."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(50_000, 1, generator=g)
    times = torch.linspace(1, 0, 201).tolist()
    for t, s in pairwise(times):
        mean, std = kernel(x, gaussian_velocity(x, t), t, s, strength)
        x = mean + std * torch.randn(x.shape, generator=g)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.012)
    assert float(x.std()) == pytest.approx(SCALE, rel=0.03)
