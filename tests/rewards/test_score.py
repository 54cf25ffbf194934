import random
from collections import Counter

import pytest
import torch

from neighbor_grpo.rewards.score import score
from neighbor_grpo.rewards.scorer import Scorer, make_scorer

PICTURES, PROMPTS = torch.zeros(7, 3, 8, 8), list("abcdefg")


def of(values):
    """A reward that looks its values up by prompt; an exception is raised."""

    def reward(images, prompts, metadata):
        if raised := next((values[p] for p in prompts if isinstance(values[p], RuntimeError)), None):
            raise raised
        return [values[p] for p in prompts]

    return reward


@pytest.mark.parametrize(
    "bad",
    [
        float("inf"),
        float("nan"),
        ValueError("no reply"),
        RuntimeError("no luck"),
        None,
        "seven",
        [1.0, 2.0],
    ],
)
def test_a_bad_picture_is_nan_with_a_reason_and_costs_no_other_its_score(bad):
    values = dict(zip(PROMPTS, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], strict=True)) | {"d": bad}
    scores = score(Scorer("of", of(values)), PICTURES, PROMPTS, [{}] * 7)
    assert scores.values[[0, 1, 2, 4, 5, 6]].tolist() == [0, 1, 2, 4, 5, 6]
    assert scores.values[3].isnan()
    assert [(f.index, f.prompt) for f in scores.failures] == [(3, "d")]
    assert type(bad).__name__ in scores.failures[0].reason if isinstance(bad, Exception) else scores.failures[0].reason


@pytest.mark.parametrize(
    ("reward", "reason"),
    [
        (lambda *_: torch.ones(2, 2), "(2, 2) for 7"),
        (lambda *_: [1.0] * 9, "shape (9,) for 7"),
        (lambda *_: [1.0], "(1,) for 7"),
        (lambda *_: None, "NoneType"),
        (lambda *_: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_reward_that_fails_altogether_is_never_a_number(reward, reason):
    scores = score(Scorer("broken", reward), PICTURES, PROMPTS, [{}] * 7)
    assert scores.values.isnan().all() and len(scores.failures) == 7
    assert all(reason in failure.reason for failure in scores.failures)


def test_a_groupwise_reward_sees_one_group_at_a_time_and_fails_by_groups():
    def best(images, prompts, metadata):
        assert len(set(prompts)) == 1
        if prompts[0] == "b":
            raise RuntimeError("no luck")
        values = images.mean((1, 2, 3))
        return (values == values.max()).float()

    best.groupwise = True
    images = torch.arange(9.0).view(9, 1, 1, 1).expand(9, 3, 8, 8)
    scores = score(make_scorer("best", best), images, [p for p in "abc" for _ in range(3)], [{}] * 9, group=3)
    assert scores.values[[0, 1, 2, 6, 7, 8]].tolist() == [0, 0, 1, 0, 0, 1]
    assert [failure.index for failure in scores.failures] == [3, 4, 5]


def test_a_thousand_faults_cost_no_other_picture_its_score():
    """Exceptions, infinities, nonsense and answers of another length, drawn anew at every call."""
    rng, faults = random.Random(0), Counter()
    images, prompts = torch.arange(24.0).view(24, 1, 1, 1).expand(24, 3, 4, 4), [f"p{n}" for n in range(24)]
    while sum(faults.values()) < 1000:
        cursed = {n: rng.choice(["raise", "nan", "text", "exception"]) for n in rng.sample(range(24), rng.randrange(6))}
        whole = rng.random() < 0.1

        def reward(images, prompts, metadata, cursed=cursed, whole=whole):
            here = [int(value) for value in images[:, 0, 0, 0].tolist()]
            if any(cursed.get(n) == "raise" for n in here):
                raise RuntimeError("no luck")
            bad = {"nan": float("nan"), "text": "?", "exception": TimeoutError("late")}
            return [bad.get(cursed.get(n), 10.0 * n) for n in here][whole:]

        scores = score(Scorer("faulty", reward), images, prompts, [{}] * 24)
        told = {failure.index for failure in scores.failures}
        assert told == set(scores.values.isnan().nonzero().flatten().tolist())
        assert all(scores.values[n] == 10.0 * n for n in range(24) if n not in told)
        assert told >= set(cursed) and (whole or told == set(cursed))
        faults.update(cursed.values() if cursed else ["none"])
        faults["none"] = 0
    assert min(faults[kind] for kind in ("raise", "nan", "text", "exception")) > 100
