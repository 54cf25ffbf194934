import numpy as np
import pytest
from made_votes import vote

from neighbor_grpo.arena.ranking import fit, rank
from neighbor_grpo.arena.win_rates import win_rate

WINS = np.array([[0, 30, 45.0, 12], [20, 0, 33, 9.5], [5, 17.5, 0, 20], [11, 8, 14, 0]])


def by_mm(wins):
    """Zermelo's iteration: p_i <- wins of i / Σ_j n_ij / (p_i + p_j)."""
    p, games = np.ones(len(wins)), wins + wins.T
    for _ in range(20_000):
        p = wins.sum(1) / (games / (p[:, None] + p)).sum(1)
    return np.log(p) - np.log(p).mean()


def test_the_scores_are_those_of_another_algorithm():
    assert fit(WINS) == pytest.approx(by_mm(WINS), abs=1e-6)


def votes_of(table, raters=8, prompts=9):
    """Votes with so many wins of the first over the second model, ties, and wins of the second, dealt to raters and prompts."""
    random, votes = np.random.default_rng(0), []
    for (first, second), counts in table.items():
        for answer, count in zip(("left", "tie", "right"), counts, strict=True):
            votes += [
                vote(f"r{random.integers(raters)}", answer, first, second, int(random.integers(prompts))) for _ in range(count)
            ]
    return votes


def test_two_models_have_the_logit_of_their_win_rate():
    votes = votes_of({("base", "ours"): (50, 20, 130)}) + [vote("r0", "bad")] * 9
    found, rate = rank(votes, ["base", "ours"]).scores, win_rate(votes, ("ours", "base")).rate
    assert rate.value == 0.7
    assert found["ours"].value - found["base"].value == pytest.approx(np.log(0.7 / 0.3), abs=1e-5)
    delta = (rate.high - rate.low) / (0.7 * 0.3) / 2  # half of the width of the logit, to first order
    assert found["ours"].high - found["ours"].low == pytest.approx(delta, rel=0.1)


def test_a_third_model_is_ranked_by_way_of_another():
    votes = votes_of({("a", "b"): (60, 0, 40), ("b", "c"): (80, 0, 20)})
    scores = rank(votes, ["a", "b", "c"]).scores
    assert scores["a"].value - scores["c"].value == pytest.approx(np.log(0.6 / 0.4) + np.log(0.8 / 0.2), abs=1e-4)
    assert all(score.low < score.value < score.high for score in scores.values())


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({("a", "b"): (5, 0, 0), ("b", "c"): (3, 0, 3)}, "a won every vote"),
        ({("a", "b"): (5, 0, 5), ("b", "c"): (3, 0, 0)}, "a, b won every vote"),
        ({("a", "b"): (5, 1, 5)}, "never compared"),
        ({}, "never compared"),
    ],
)
def test_scores_without_bounds_are_said_and_not_given(table, said):
    found = rank(votes_of(table), ["a", "b", "c"])
    assert found.scores == {} and said in found.missing


def test_a_tie_bounds_the_scores():
    assert rank(votes_of({("a", "b"): (5, 1, 0)}), ["a", "b"]).scores["a"].value == pytest.approx(np.log(5.5 / 0.5) / 2)
