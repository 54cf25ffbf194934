"""Who is shown which pair: balance, attention checks, undo, restarts, expiry, adaptive choice."""

import math
import random
from collections import Counter

import pytest
from scipy.stats import norm
from studies import info_of

from neighbor_grpo.arena.assignment import Board, expected_loss
from neighbor_grpo.arena.rating import NameTakenError, Rating, Rules
from neighbor_grpo.arena.store import Store
from neighbor_grpo.arena.votes import DEGRADED

LEFT = {"overall": "left"}


@pytest.fixture
def begin(tmp_path):
    """Return a function that begins or continues a study, as a server does that was started again."""
    opened = []

    def begin(info, **rules):
        while opened:
            opened.pop().close()
        opened.append(Store.serving(str(tmp_path / "votes.db"), info))
        return Rating(opened[-1], Rules(**rules))

    yield begin
    while opened:
        opened.pop().close()


def finish(rating, rater, answer=LEFT, votes=None):
    turn = rating.turn(rater, 0)
    while turn.token and (votes is None or turn.done < votes):
        turn = rating.answer(rater, turn.token, answer, 1)
    return turn


@pytest.mark.parametrize(("models", "prompts", "votes", "raters"), [(2, 25, 10, 12), (3, 5, 9, 12), (4, 3, 100, 3)])
def test_pairs_are_balanced_whatever_order_raters_come_in(begin, models, prompts, votes, raters):
    rating = begin(info_of(models, prompts), votes=votes, repeat=0)
    rng = random.Random(0)
    open_ = {rating.join(f"rater {n}", 0).id for n in range(raters)}
    while open_:
        rater = rng.choice(sorted(open_))
        turn = rating.turn(rater, 0)
        if turn.token is None or rating.answer(rater, turn.token, LEFT, 1).token is None:
            open_.remove(rater)
        assert max(rating.board.given) - min(rating.board.given) <= 1
    found = Counter((vote.prompt, frozenset((vote.left, vote.right))) for vote in rating.store.votes())
    counts = [found[key] for key in {(p, frozenset((f"model-{a}", f"model-{b}"))) for p in range(prompts)
                                     for a in range(models) for b in range(a)}]  # fmt: skip
    assert sum(counts) == raters * min(votes, len(rating.pairs)) and max(counts) - min(counts) <= 1
    by_rater = Counter((vote.rater, vote.prompt, frozenset((vote.left, vote.right))) for vote in rating.store.votes())
    assert set(by_rater.values()) == {1}
    by_models = Counter(frozenset((vote.left, vote.right)) for vote in rating.store.votes()).values()
    assert max(by_models) - min(by_models) <= 1


def test_sides_and_order_are_random_for_each_rater(begin):
    rating = begin(info_of(prompts=40), votes=40, repeat=0)
    for name in "ab":
        finish(rating, rating.join(name, 0).id)
    votes = rating.store.votes()
    rows = {name: [(vote.prompt, vote.left) for vote in votes if vote.rater == name] for name in "ab"}
    left = {name: dict(row) for name, row in rows.items()}
    assert rows["a"] != rows["b"] and 8 <= sum(left["a"][p] == left["b"][p] for p in range(40)) <= 32
    assert all(8 <= sum(side == "model-0" for _, side in row) <= 32 for row in rows.values())


def test_a_vote_sent_twice_is_stored_once(begin):
    rating = begin(info_of(), repeat=0)
    rater = rating.join("Ada", 0).id
    first = rating.turn(rater, 10)
    second = rating.answer(rater, first.token, LEFT, 12.5)
    assert rating.answer(rater, first.token, {"overall": "right"}, 13) == second
    (vote,) = rating.store.votes()
    assert (vote.answer, vote.seconds) == ("left", 2.5)


def test_undo_takes_back_the_last_vote_only(begin):
    rating = begin(info_of(), repeat=0)
    rater = rating.join("Ada", 0).id
    turns = [rating.turn(rater, 0)]
    for _ in range(3):
        turns.append(rating.answer(rater, turns[-1].token, LEFT, 1))
    assert rating.undo(rater, turns[0].token, 2).token == turns[3].token  # not the last vote: nothing is taken back
    again = rating.undo(rater, turns[3].undo, 2)
    assert again.done == 2 and again.prompt == turns[2].prompt and len(rating.store.votes()) == 2
    assert {again.token, again.left, again.right}.isdisjoint({turns[2].token, turns[2].left, turns[2].right})
    assert rating.answer(rater, turns[2].token, LEFT, 3).lost  # its old page
    assert rating.answer(rater, again.token, {"overall": "tie"}, 3).token == turns[3].token
    assert [vote.answer for vote in rating.store.votes()] == ["left", "left", "tie"]


def test_a_restart_changes_nothing(begin):
    info = info_of(3, 8)
    rating = begin(info, votes=20)
    raters = [rating.join(name, 0).id for name in "abc"]
    for rater in raters:
        finish(rating, rater, votes=7)
    turns, given, votes = [rating.turn(rater, 0) for rater in raters], rating.board.given, rating.store.votes()
    again = begin(info, votes=20)
    assert [again.turn(rater, 0) for rater in raters] == turns and again.board.given == given and again.store.votes() == votes
    assert all(again.picture(rater, turn.left) for rater, turn in zip(raters, turns, strict=True))


def test_pairs_of_a_rater_who_left_are_given_to_others(begin):
    rating = begin(info_of(prompts=10), votes=10, repeat=0, expire=100)
    gone = rating.join("gone", 0).id
    turn = finish(rating, gone, votes=3)
    finish(rating, rating.join("a", 0).id)
    assert rating.board.given == [2] * 10
    rating.turn(rating.join("b", 200).id, 200)
    assert sum(rating.board.given) == 3 + 10 + 10 and max(rating.board.given) - min(rating.board.given) == 1
    assert rating.picture(gone, turn.left) is None
    back = rating.answer(gone, turn.token, LEFT, 201)
    assert back.lost and back.done == 3 and finish(rating, gone).done == 10


def test_attention_checks(begin):
    rating = begin(info_of(prompts=20), votes=20, repeat=0.25, obvious=0.1)
    rater = rating.join("Ada", 0).id
    assert rating.turn(rater, 0).total == 27
    finish(rating, rater)
    votes = rating.store.votes()
    assert Counter(vote.purpose for vote in votes) == {"vote": 20, "repeat": 5, "obvious": 2}
    first = {vote.prompt: vote for vote in votes if vote.purpose == "vote"}
    for vote in votes:
        earlier = first[vote.prompt]
        if vote.purpose == "repeat":
            assert (vote.left, vote.right) == (earlier.right, earlier.left) and votes.index(earlier) < votes.index(vote)
        if vote.purpose == "obvious":
            assert {vote.left, vote.right} == {"model-0", DEGRADED}
    assert rating.board.given == [1] * 20  # checks are not counted


def test_names(begin):
    rating = begin(info_of())
    ada = rating.join("Ada", 0)
    assert rating.join("Ada", 0, invited=True) == ada
    with pytest.raises(NameTakenError):
        rating.join("Ada", 0)


def test_the_expected_loss_is_that_of_the_normal_distribution():
    p, s = (6 + 1 + 1) / (6 + 2 + 2 + 2), math.sqrt(8 / 12 * 4 / 12 / (10 + 5 + 3))
    difference = norm(p - 0.5, s)
    assert expected_loss(6, 2, 2, 5) == pytest.approx(difference.expect(lambda d: max(-d, 0)), rel=1e-6)
    assert expected_loss(2, 6, 2, 5) == pytest.approx(expected_loss(6, 2, 2, 5))


def test_adaptive_choice_asks_where_the_ranking_is_open(begin):
    rating = begin(info_of(3, 40), votes=30, repeat=0, adaptive=True)
    rng = random.Random(1)
    for n in range(4):
        rater = rating.join(f"rater {n}", 0).id
        turn = rating.turn(rater, 0)
        while turn.token:
            left, right = (rating.picture(rater, name).model for name in (turn.left, turn.right))
            close = 2 not in (left, right)  # models 0 and 1 are equal, 2 is always worst
            answer = rng.choice(["left", "right"]) if close else "left" if right == 2 else "right"
            turn = rating.answer(rater, turn.token, {"overall": answer}, 1)
    asked = Counter(frozenset((vote.left, vote.right)) for vote in rating.store.votes())
    assert asked[frozenset(("model-0", "model-1"))] > 0.6 * sum(asked.values()) and min(asked.values()) >= 8


def test_choosing_takes_the_least_often_given_pairs():
    board = Board(info_of(3, 4).pairs())
    for pair in range(12):
        if pair not in (3, 7):
            board.give(pair)
    assert set(board.choose(2, (), random.Random(0))) == {3, 7}
    assert board.choose(5, set(range(12)), random.Random(0)) == []
