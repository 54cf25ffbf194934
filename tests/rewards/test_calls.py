"""Rewards that misbehave: what they return, change and raise reaches nothing else, and is never a number by accident."""

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from neighbor_grpo.prompts.prompt import Prompt
from neighbor_grpo.rewards.call import ResultError, contained, read_values
from neighbor_grpo.rewards.preference import WinRate
from neighbor_grpo.rewards.score import score
from neighbor_grpo.rewards.scorer import Scorer, make_scorer
from neighbor_grpo.rewards.set import FailureCount, RewardSet, check_failed

NAN = float("nan")


def images(n=3):
    return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor([1.0, 2.0, 3.0]),
        torch.tensor([1.0, 2.0, 3.0], requires_grad=True),
        torch.tensor([1, 2, 3], dtype=torch.int8),
        torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16),
        np.array([1, 2, 3], dtype=np.uint8),
        np.array([1.0, 2, 3], dtype=object),
        np.float16([1, 2, 3]),
        [1, np.float32(2), np.array(3.0)],
        (True, Fraction(4, 2), torch.tensor(3.0, requires_grad=True)),
        list(torch.tensor([1.0, 2.0, 3.0]) * 1.0),
    ],
)
def test_numbers_are_read_from_tensors_arrays_lists_and_tuples(values):
    assert read_values(values, 3) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "values",
    [
        {0: 1.0, 1: 2.0, 2: 3.0},
        {1.0, 2.0, 3.0},
        frozenset({1.0, 2.0, 3.0}),
        {1.0: 0, 2.0: 0, 3.0: 0}.keys(),
        (n for n in (1.0, 2.0, 3.0)),
        map(float, (1, 2, 3)),
        deque([1.0, 2.0, 3.0]),
        range(3),
        "123",
        b"123",
        bytearray(3),
        1.0,
        None,
        object(),
        torch.tensor([1j, 2j, 3j]),
        torch.tensor([[1.0], [2.0], [3.0]]),
        torch.tensor(1.0),
        np.array([1j, 2j, 3j]),
        np.array(["1", "2", "3"]),
        np.array(["2020-01-01"] * 3, dtype="datetime64[ns]"),
        [1.0, 2.0],
        [],
    ],
)
def test_anything_else_is_a_failure_that_names_it(values):
    with pytest.raises(ResultError, match="the reward returned"):
        read_values(values, 3)
    scores = score(Scorer("odd", lambda *_: values), images(), ["a"] * 3, [{}] * 3)
    assert scores.values.isnan().all() and len(scores.failures) == 3


def test_a_reward_that_returns_a_dict_stops_the_run_by_its_type():
    rewards = RewardSet({"odd": Scorer("odd", lambda images, *_: dict.fromkeys(range(len(images)), 1.0))})
    scores = rewards.score(images(4)[None], [Prompt("p")])
    with pytest.raises(ValueError, match="returned a dict"):
        check_failed({"odd": FailureCount(4, 4, scores["odd"].failures[0])}, 0.1)


@pytest.mark.parametrize(
    "value",
    [None, NAN, float("inf"), 10**400, "7", b"7", [7], {}, 7j, Decimal(7), torch.ones(1), torch.tensor(7j), SystemExit(0)],
)
def test_a_value_that_is_not_a_number_costs_its_picture_only(value):
    first, second, third = read_values([1.0, value, 3], 3)
    assert (first, third) == (1.0, 3.0) and isinstance(second, BaseException)


class Raised(BaseException):
    """Not an Exception."""


@pytest.mark.parametrize(
    "error", [SystemExit(0), SystemExit("bye"), GeneratorExit(), Raised("x"), RecursionError(), MemoryError()]
)
def test_whatever_a_reward_raises_is_a_failure_of_the_pictures_that_raise_it(error):
    def reward(images, prompts, metadata):
        if "bad" in prompts:
            raise error
        return [1.0] * len(prompts)

    scores = score(Scorer("r", reward), images(4), ["a", "b", "bad", "c"], [{}] * 4)
    assert [failure.index for failure in scores.failures] == [2]
    assert scores.failures[0].reason.startswith(type(error).__name__)


def test_an_interrupt_passes():
    def reward(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(Scorer("r", reward), images(), ["a"] * 3, [{}] * 3)
    with ThreadPoolExecutor(1) as thread:  # where no signal raises it
        scores = thread.submit(score, Scorer("r", reward), images(), ["a"] * 3, [{}] * 3).result()
    assert len(scores.failures) == 3


def spoil(images, prompts, metadata):
    """Score by brightness, and change every argument in place, also behind torch's back."""
    values = images.double().mean((-3, -2, -1))
    values = values if values.ndim == 1 else values.mean(1)
    images.numpy()[:] = 0
    images.fill_(0)
    prompts.clear()
    for row in metadata:
        row["deep"]["x"].append(1)
        row.clear()
    return values


@pytest.mark.parametrize("shape", [(2, 3, 3, 4, 4), (2, 3, 5, 3, 4, 4)])
@pytest.mark.parametrize("attributes", [{}, {"groupwise": True}])
def test_what_a_reward_changes_in_place_reaches_nothing_else(shape, attributes):
    def first(*given):
        return spoil(*given)

    def last(images, prompts, metadata):
        assert prompts and all(row["deep"]["x"] == [0] for row in metadata)
        return images.double().mean((-3, -2, -1))

    for key, value in attributes.items():
        setattr(first, key, value)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    before, prompts = x.clone(), [Prompt("a", {"deep": {"x": [0]}}), Prompt("b", {"deep": {"x": [0]}})]
    both = RewardSet({"first": make_scorer("first", first), "last": make_scorer("last", last)}).score(x, prompts)
    assert torch.equal(x, before) and [prompt.metadata for prompt in prompts] == [{"deep": {"x": [0]}}] * 2
    assert torch.equal(both["first"].values, both["last"].values) and not both["last"].failures


def test_a_failed_try_that_changed_the_pictures_does_not_change_the_next_one():
    def reward(images, prompts, metadata):
        values = images.mean((1, 2, 3))
        images.zero_()
        if "bad" in prompts:
            raise ValueError("bad")
        return values

    x = images(4)
    scores = score(Scorer("r", reward), x, ["a", "bad", "c", "d"], [{}] * 4)
    assert torch.equal(scores.values[[0, 2, 3]], x.mean((1, 2, 3)).double()[[0, 2, 3]])


def test_the_pictures_of_one_prompt_do_not_share_their_metadata():
    def reward(images, prompts, metadata):
        return [float(row.pop("worth", 0)) for row in metadata]

    shared = {"worth": 2}
    assert score(Scorer("r", reward), images(), ["a"] * 3, [shared] * 3).values.tolist() == [2, 2, 2]


def test_the_process_is_as_before_after_a_call(tmp_path):
    before = (torch.get_default_dtype(), torch.get_num_threads(), os.getcwd(), torch.is_grad_enabled())
    with contained():
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.set_num_threads(before[1] + 1)
        torch.set_grad_enabled(True)
        os.chdir(tmp_path)
    assert (torch.get_default_dtype(), torch.get_num_threads(), os.getcwd(), torch.is_grad_enabled()) == before
    assert torch.zeros(1).device.type == "cpu" and torch.full_like(torch.zeros(1, device="meta"), 1).device.type == "meta"


def test_a_forked_child_that_comes_back_ends_there(tmp_path):
    def reward(images, prompts, metadata):
        child = os.fork()
        if not child:
            raise SystemExit  # as people end a child
        return [float(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))] * len(prompts)

    parent = os.getpid()
    assert score(Scorer("r", reward), images(1), ["a"], [{}]).values.tolist() == [1.0]
    assert os.getpid() == parent


def test_gradients_are_off_and_a_reward_that_needs_them_may_turn_them_on():
    def reward(images, prompts, metadata):
        assert not torch.is_grad_enabled()
        with torch.enable_grad():
            x = images.requires_grad_()
            return x.pow(2).sum((1, 2, 3))

    assert not score(Scorer("r", reward), images(), ["a"] * 3, [{}] * 3).failures


@pytest.mark.parametrize("answer", [{}, "0.5" * 3, [2.0] * 3, [NAN] * 3, ["0.5"] * 3, [0.5] * 2])
def test_preferences_that_are_not_probabilities_decide_nothing(answer):
    class Judge:
        def prefer(self, first, second, prompts, metadata):
            return answer

        def __call__(self, images, prompts, metadata): ...

    rate = make_scorer("rate", WinRate(make_scorer("judge", Judge())))
    scores = score(rate, images(), ["a"] * 3, [{}] * 3, group=3)
    assert scores.values.isnan().all() and len(scores.failures) == 3


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def test_reasons_are_one_short_safe_line():
    for error in (ValueError("\x1b[2J\x07 red\x1b]0;title\x07\u202e\n" + "x" * 100_000 + "\ud800"), Mute()):

        def reward(images, prompts, metadata, error=error):
            raise error

        reason = score(Scorer("r", reward), images(1), ["a"], [{}]).failures[0].reason
        assert reason.isprintable() and len(reason) <= 500 and reason.startswith(type(error).__name__)
