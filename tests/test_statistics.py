import numpy as np
import pytest
from scipy import stats

from neighbor_grpo.evaluate.statistics import interval, paired, prompt_means

RNG = np.random.default_rng(0)


def test_the_interval_is_the_normal_one_for_many_prompts():
    values = RNG.normal(3.0, 2.0, 400)
    half = 1.96 * values.std() / 20
    assert interval(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    assert interval(np.append(values, np.nan)) == interval(values)


def test_the_interval_covers_as_often_as_it_says():
    hits = [low <= 1.0 <= high for low, high in (interval(RNG.exponential(1.0, 60), 0.8, seed) for seed in range(150))]
    assert 0.68 < np.mean(hits) < 0.9


def test_prompt_means_leave_out_what_was_not_scored():
    got = prompt_means(np.array([[1.0, 3.0], [np.nan, 5.0], [np.nan, np.nan]]))
    np.testing.assert_array_equal(got, [2.0, 5.0, np.nan])


def test_paired_by_hand():
    a = np.array([[1.0, 2.0], [3.0, 3.0], [0.0, np.nan], [2.0, 2.0], [5.0, 1.0]])
    b = np.array([[0.0, 2.0], [2.0, 1.0], [1.0, 9.0], [2.0, 2.0], [1.0, 0.0]])
    got = paired(a, b)
    assert got.difference == pytest.approx(np.mean([0.5, 1.5, -1.0, 0.0, 2.5]))
    assert got.win_rate == pytest.approx((5 + 0.5 * 3) / 9)
    assert (got.prompts_better, got.prompts_worse) == (3, 1)
    assert got.p_value == pytest.approx(2 * stats.binom.sf(2, 4, 0.5))  # three heads or more of four, either side
    back = paired(b, a)
    assert (back.difference, back.win_rate) == pytest.approx((-got.difference, 1 - got.win_rate))
    assert back.p_value == got.p_value


def test_equal_sets_have_no_difference():
    a = RNG.normal(size=(6, 2))
    got = paired(a, a)
    assert (got.difference, got.win_rate, got.p_value) == (0.0, 0.5, 1.0)
