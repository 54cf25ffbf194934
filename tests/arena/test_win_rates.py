import pytest
from made_votes import vote

from neighbor_grpo.arena.win_rates import pairs, points, win_rate, winner

VOTES = [
    vote("ann", "right", prompt=0),  # ours
    vote("ann", "left", "ours", "base", prompt=1),  # ours, on the other side
    vote("ann", "left", prompt=2),  # base
    vote("bob", "tie", prompt=0),
    vote("bob", "bad", prompt=1),
    vote("eve", "bad", prompt=1),
    vote("bob", "right", prompt=2),  # ours
    vote("bob", "left", "ours", "third", prompt=2),  # another pair
]


def test_sides_do_not_matter():
    assert [winner(one) for one in VOTES] == ["ours", "ours", "base", None, None, None, "ours", "ours"]
    assert [points(one, "base") for one in VOTES[:7]] == [0, 0, 1, 0.5, 0.5, 0.5, 0]


def test_win_rates_are_those_of_a_table_made_by_hand():
    found = win_rate(VOTES, ("base", "ours"))
    assert (found.wins, found.ties, found.bad, found.losses, found.votes) == (1, 1, 2, 3, 7)
    assert (found.raters, found.prompts) == (3, 3)
    assert found.rate.value == 1.5 / 5  # a tie is half, "both are bad" is left out
    assert found.rate_with_bad.value == 2.5 / 7
    assert 0 < found.rate.low < 0.3 < found.rate.high < 1


def test_the_other_order_is_the_other_share():
    one, other = win_rate(VOTES, ("base", "ours")), win_rate(VOTES, ("ours", "base"))
    assert other.rate.value == pytest.approx(1 - one.rate.value)
    assert (other.rate.low, other.rate.high) == pytest.approx((1 - one.rate.high, 1 - one.rate.low))


def test_a_pair_without_votes_has_no_rate():
    found = win_rate(VOTES, ("base", "third"))
    assert found.votes == 0 and found.rate is found.rate_with_bad is None
    assert list(pairs(["a", "b", "c"])) == [("a", "b"), ("a", "c"), ("b", "c")]
