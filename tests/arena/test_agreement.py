import pytest
from made_votes import vote

from neighbor_grpo.arena.agreement import alpha, attention, attentive
from neighbor_grpo.arena.votes import DEGRADED

PAIR = ("base", "ours")
SAID = {"1": "left", "2": "right", "3": "tie", "4": "bad"}


def votes_of(*raters):
    """Votes of raters on units, a character each; * without."""
    return [
        vote(str(n), SAID[value], prompt=unit) for n, row in enumerate(raters) for unit, value in enumerate(row) if value != "*"
    ]


def test_alpha_is_that_of_published_examples():
    # Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability": two observers of binary data, alpha = 0.095
    assert alpha(votes_of("1211111121", "2221121111"), PAIR) == pytest.approx(0.095, abs=5e-4)
    # three coders, four values, missing data (his example of 2004, Content Analysis, chapter 11): nominal alpha = 0.691
    coders = votes_of("*****34121133*3", "1*213343*******", "**21344*21133*4")
    assert alpha(coders, PAIR) == pytest.approx(0.691, abs=5e-4)


def test_alpha_counts_pictures_and_models_not_sides():
    votes = [vote("ann", "left"), vote("bob", "right", "ours", "base"), vote("ann", "right", prompt=1)]
    votes += [vote("bob", "left", "ours", "base", prompt=1), vote("ann", "left", seed=1), vote("bob", "left", seed=1)]
    assert alpha(votes, PAIR) == 1.0
    assert alpha(votes, ("base", "third")) is None


def test_without_shared_pictures_or_with_one_answer_alpha_is_not_defined():
    assert alpha([vote("ann", "left"), vote("bob", "right", prompt=1)], PAIR) is None
    assert alpha([vote("ann", "left"), vote("bob", "left")], PAIR) is None


CHECKED = [
    vote("ann", "left", seconds=1),
    vote("ann", "right", prompt=1, seconds=3),
    vote("ann", "tie", prompt=2, seconds=8),
    vote("ann", "right", "ours", "base", purpose="repeat"),  # base again, on the other side
    vote("ann", "bad", prompt=2, purpose="repeat"),  # it was a tie
    vote("ann", "left", "ours", "base", prompt=5, purpose="repeat"),  # its first answer was taken back
    vote("ann", "left", "ours", DEGRADED, purpose="obvious"),
    vote("ann", "right", "base", DEGRADED, purpose="obvious"),
    vote("ann", "tie", "ours", DEGRADED, purpose="obvious"),
    vote("bob", "left"),
]


def test_attention_is_counted():
    ann, bob = attention(CHECKED)
    assert (ann.votes, ann.repeats, ann.same, ann.obvious, ann.right) == (3, 2, 1, 3, 1)
    assert ann.consistency == 2 / 5 and ann.left == 0.5 and ann.seconds == 3
    assert bob.consistency is None


def test_raters_below_the_least_consistency_are_left_out():
    assert {one.rater for one in attentive(CHECKED, 0.4)} == {"ann", "bob"}
    assert {one.rater for one in attentive(CHECKED, 0.41)} == {"bob"}  # nobody has checked him
