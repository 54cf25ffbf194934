import arena_coverage
import numpy as np
import pytest
from scipy.stats import binomtest, t

from neighbor_grpo.arena.intervals import Spread, combine, proportion, ratio, score, spreads


def crossed(raters, prompts, seed=0):
    """Votes [R P, 2] of every rater on every prompt, with effects of both."""
    random = np.random.default_rng(seed)
    chance = 0.6 + random.normal(0, 0.15, raters)[:, None] + random.normal(0, 0.15, prompts)
    y = (random.random((raters, prompts)) < chance).astype(float)
    r, p = np.meshgrid(np.arange(raters), np.arange(prompts), indexing="ij")
    return y, np.column_stack([y.ravel(), np.ones(y.size)]), r.ravel(), p.ravel()


def closed_form(y):
    """The variances of the mean by raters, by prompts and by votes, from means of rows, columns and cells."""
    return [((m - y.mean()) ** 2).sum() / (m.size * (m.size - 1)) for m in (y.mean(1), y.mean(0), y)]


def test_the_bootstrap_has_the_variance_of_the_closed_form():
    y, rows, raters, prompts = crossed(12, 30)
    by_rater, by_prompt, by_vote = closed_form(y)
    found = spreads(rows, raters, prompts, ratio)[0]
    assert found.variance == pytest.approx(max(by_rater + by_prompt - by_vote, by_rater, by_prompt), rel=0.1)
    assert by_rater + by_prompt - by_vote > 1.5 * by_vote  # raters and prompts differ, and that is not missed


def test_of_a_sum_the_variance_is_unbiased_with_few_groups():
    raters = np.array([0, 1, 2, 3])
    found = spreads(np.array([[3.0], [-1.0], [-4.0], [2.0]]), raters, np.zeros(4, dtype=int), lambda sums: sums)[0]
    assert found.variance == pytest.approx(4 / 3 * (9 + 1 + 16 + 4), rel=0.1)


@pytest.mark.parametrize("one", ["rater", "prompt"])
def test_one_rater_or_one_prompt_leaves_the_variance_of_the_other(one):
    y, rows, groups, _ = crossed(20, 1)
    same = np.zeros(20, dtype=int)
    found = spreads(rows, *((same, groups) if one == "rater" else (groups, same)), ratio)[0]
    assert found.variance == pytest.approx(y.var(ddof=1) / 20, rel=0.1) and found.freedom == 19


def test_nothing_tells_the_width_of_one_vote():
    found = spreads(np.ones((1, 2)), np.zeros(1, dtype=int), np.zeros(1, dtype=int), ratio)[0]
    assert proportion(1.0, found).low is None and score(1.0, found).high is None


def test_variances_are_combined():
    assert combine(3.0, 4.0, 2.0, 11, 21).variance == 5.0
    assert combine(3.0, 4.0, 2.0, 11, 21).freedom == pytest.approx(25 / (9 / 10 + 16 / 20))
    assert combine(1.0, 4.0, 3.0, 11, 21).variance == 4.0  # never below that of prompts alone


def test_of_independent_votes_the_interval_is_wilsons():
    known = binomtest(72, 100).proportion_ci(method="wilson")
    found = proportion(0.72, Spread(0.72 * 0.28 / 100, np.inf, 50))
    assert (found.low, found.high) == pytest.approx((known.low, known.high))


def test_where_all_agree_each_rater_counts_once():
    known = binomtest(8, 8).proportion_ci(method="wilson")
    found = proportion(1.0, Spread(0.0, np.inf, 8))
    wider = t.ppf(0.975, 7) ** 2 / 1.959964**2  # Wilson's lower end is n / (n + t²)
    assert found.high == 1.0 and found.low == pytest.approx(8 / (8 + wider * (8 / known.low - 8)))


def test_a_score_is_estimated_with_students_t():
    found = score(1.0, Spread(4.0, 9.0, 10))
    assert (found.low, found.high) == pytest.approx((1 - 2 * t.ppf(0.975, 9), 1 + 2 * t.ppf(0.975, 9)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [0, 1, 2])  # 46 raters on 50 prompts, who differ more and more
def test_intervals_hold_the_truth_in_95_of_100_studies(kind):
    found = arena_coverage.cover(arena_coverage.STUDIES[kind], 300)
    assert 0.92 < found.coverage["arena"] < 0.985  # 0.95 ± 2.5 standard errors of 300 studies
    assert found.width["arena"] == pytest.approx(found.planned, rel=0.12)
