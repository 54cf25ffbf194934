import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from neighbor_grpo.flow.path import eps_prediction, shift_time, x0_prediction
from neighbor_grpo.flow.solvers import SOLVERS, dpmpp_2m, dpmpp_3m, euler, heun, log_snr, solve

MEAN, SCALE = 0.7, 0.4  # data N(MEAN, SCALE^2): the velocity and the ODE's solution are known


def gaussian_velocity(x, t):
    """v = E[eps - x0 | x_t] for Gaussian data."""
    variance = (1 - t) ** 2 * SCALE**2 + t**2
    x0 = MEAN + (1 - t) * SCALE**2 / variance * (x - (1 - t) * MEAN)
    eps = t / variance * (x - (1 - t) * MEAN)
    return eps - x0


def exact(x, t, s):
    """The probability-flow ODE keeps the standardised state."""

    def std(u):
        return math.sqrt((1 - u) ** 2 * SCALE**2 + u**2)

    return (1 - s) * MEAN + std(s) / std(t) * (x - (1 - t) * MEAN)


def test_velocity_moves_the_exact_solution():
    x, t, h = torch.tensor([0.3, -1.2], dtype=torch.float64), 0.6, 1e-6
    slope = (exact(x, t, t + h) - exact(x, t, t - h)) / (2 * h)
    torch.testing.assert_close(slope, gaussian_velocity(x, t), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2), ("dpmpp_3m", 3)])
def test_order_of_the_global_error(name, order):
    """From 0.9 to 0.1 the log-log slope of the error over the step is the order; multistep pasts start exact."""
    x = torch.tensor([1.5, -0.8, 0.1], dtype=torch.float64)
    errors, counts = [], [64, 128, 256, 512]
    for n in counts:
        times = np.linspace(0.9, 0.1, n + 1).tolist()
        h = 0.8 / n
        past = []
        for before in (0.9 + 2 * h, 0.9 + h):
            if before < 1:
                state = exact(x, 0.9, before)
                past.append((before, x0_prediction(state, gaussian_velocity(state, before), before)))
        y = x
        for t, s in pairwise(times):
            v = gaussian_velocity(y, t)
            following = heun(y, v, t, s, gaussian_velocity) if name == "heun" else SOLVERS[name](y, v, t, s, past)
            past = [*past[-1:], (t, x0_prediction(y, v, t))]
            y = following
        errors.append((y - exact(x, 0.9, 0.1)).abs().max().item())
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.25, (slope, errors)


def test_agrees_with_diffusers_multistep_solver():
    """The same sigmas, a velocity that is no polynomial; diffusers in its own loop."""
    sigmas = [0.98, 0.9, 0.77, 0.6, 0.41, 0.2, 0.07, 0.0]
    scheduler = DPMSolverMultistepScheduler(
        solver_order=2,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        algorithm_type="dpmsolver++",
        final_sigmas_type="zero",
        lower_order_final=False,
        euler_at_final=True,
    )
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    scheduler.timesteps = torch.arange(len(sigmas) - 1)
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def velocity(x, t):
        return torch.sin(3 * x + t) - x * t

    theirs = x
    for n, t in enumerate(scheduler.timesteps):
        theirs = scheduler.step(velocity(theirs, sigmas[n]), t, theirs).prev_sample
    ours = solve("dpmpp_2m", velocity, x, sigmas)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_first_multistep_step_from_pure_noise_is_euler_and_the_second_first_order():
    x, v = torch.randn(2, 5), torch.randn(2, 5)
    for solver in (dpmpp_2m, dpmpp_3m):
        assert torch.equal(solver(x, v, 1.0, 0.8, []), euler(x, v, 1.0, 0.8))
        torch.testing.assert_close(solver(x, v, 0.8, 0.5, [(1.0, torch.randn(2, 5))]), euler(x, v, 0.8, 0.5))
        assert torch.equal(solver(x, v, 0.3, 0.0, [(0.9, x), (0.6, x)]), x - 0.3 * v)


def test_euler_is_the_interpolation_of_predicted_data_and_noise():
    x, v, t, s = torch.randn(3, 4), torch.randn(3, 4), 0.7, 0.4
    expected = (1 - s) * x0_prediction(x, v, t) + s * eps_prediction(x, v, t)
    torch.testing.assert_close(euler(x, v, t, s), expected)


def test_times_may_differ_by_row():
    x, v, t, s = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.tensor([0.9, 0.5]), torch.tensor([0.6, 0.1])
    rows = torch.stack([euler(x[i], v[i], float(t[i]), float(s[i])) for i in range(2)])
    torch.testing.assert_close(euler(x, v, t, s), rows)


def test_shift_and_log_snr():
    assert shift_time(0.5, 3.0) == pytest.approx(0.75)
    assert log_snr(0.25) == pytest.approx(math.log(3))
    assert (log_snr(1.0), log_snr(0.0)) == (-math.inf, math.inf)
