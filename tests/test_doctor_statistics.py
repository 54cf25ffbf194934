import numpy as np
import pytest

from neighbor_grpo.training.doctor.statistics import change, direction, match


def gram(n, d, signal, seed):
    rng = np.random.default_rng(seed)
    v = rng.standard_normal((n, d)) + signal / d**0.5
    return v @ v.T


def test_signal_and_variance_of_a_direction_are_unbiased():
    """g = m + e with |m|^2 = 9 and E|e|^2 = 50."""
    found = [direction(gram(20, 50, 3.0, seed)) for seed in range(30)]
    assert np.mean([one.signal for one in found]) == pytest.approx(9, rel=0.1)
    assert np.mean([one.variance for one in found]) == pytest.approx(50, rel=0.05)
    assert found[0].enough == pytest.approx(found[0].variance / found[0].signal)


def test_error_rates_of_the_direction():
    p = [direction(gram(12, 30, 0.0, seed), seed).p_value for seed in range(60)]
    assert np.mean(np.array(p) <= 0.05) <= 0.15 and 0.35 < np.mean(p) < 0.65
    assert direction(gram(32, 30, 4.0, 0)).p_value <= 0.001


def test_one_long_vector_decides_nothing():
    long = gram(16, 30, 0.0, 1)
    long[0] *= 1e6
    long[:, 0] *= 1e6
    assert direction(long).p_value > 0.01
    assert direction(np.zeros((8, 8))).p_value == 1.0


def scores(assignment, strength=1.0, seed=0, n=8):
    """Pictures of prompt i score higher by the prompt assignment[i]; prompts and pictures differ in ease."""
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((n, n, 4)) + 3 * rng.standard_normal((1, n, 1)) + 3 * rng.standard_normal((n, 1, 4))
    table[np.arange(n), assignment] += strength
    return table


def test_own_prompts_are_told_from_others():
    own, rolled = np.arange(8), np.roll(np.arange(8), 1)
    assert match(scores(own, 3.0)).own <= 0.001 < match(scores(own, 3.0)).opposite
    assert match(scores(own, -3.0)).opposite <= 0.001
    wrong = match(scores(rolled, 4.0))
    assert wrong.own > 0.05 and wrong.other <= 0.001
    p = [match(scores(own, 0.0, seed)).own for seed in range(50)]
    assert np.mean(np.array(p) <= 0.05) <= 0.16


def test_a_score_without_the_prompt_or_with_an_offset_for_it_depends_on_nothing():
    pictures, prompts = np.random.default_rng(0).standard_normal((2, 6))
    assert not match(np.broadcast_to(pictures[:, None, None], (6, 6, 4)).copy()).depends
    assert not match(np.broadcast_to(pictures[:, None, None] + prompts[None, :, None], (6, 6, 4)).copy()).depends


def test_change_of_a_series_in_standard_errors():
    rise, z = change(np.array([0.0, 2.0, 5.0, 5.0, 10.0, 12.0]))  # means 1 and 11, variances 2 and 2, two values each
    assert (rise, z) == (10.0, pytest.approx(10 / 2**0.5))
    assert change(np.ones(9)) == (0.0, 0.0) and change(np.arange(5.0)) == (0.0, 0.0)
