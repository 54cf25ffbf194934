import pytest
import torch

from neighbor_grpo.rewards.preference import WinRate
from neighbor_grpo.rewards.registry import load_reward
from neighbor_grpo.rewards.score import score
from neighbor_grpo.rewards.scorer import make_scorer


def pictures(values):
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)


def brightness(images, prompts, metadata):
    return images.mean((1, 2, 3))


def rates(of, values):
    return WinRate(make_scorer("of", of))(pictures(values), ["a"] * len(values), [{}] * len(values))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1, 0.4, 0.2, 0.3], [0, 1, 1 / 3, 2 / 3]),
        ([0.5, 0.5, 0.5], [1 / 2] * 3),
        ([0.2, 0.2, 0.9], [1 / 4, 1 / 4, 1]),
        ([0.7, 0.1], [1, 0]),
    ],
)
def test_win_rates_by_hand(values, expected):
    assert rates(brightness, values) == pytest.approx(expected)


def test_against_loops_and_the_mean_is_one_half():
    values = torch.randint(0, 5, (12,), generator=torch.Generator().manual_seed(0)).div(5).tolist()
    expected = [sum((a > b) + 0.5 * (a == b) for j, b in enumerate(values) if j != i) / 11 for i, a in enumerate(values)]
    assert rates(brightness, values) == pytest.approx(expected)
    assert sum(expected) / 12 == pytest.approx(0.5)


def test_a_failed_picture_stays_failed_and_takes_part_in_no_comparison():
    def of(images, prompts, metadata):
        return [float("nan"), 0.3, KeyError("no box"), 0.1, 0.2]

    found = rates(of, [0.0] * 5)
    assert found[1] == 1 and found[3] == 0 and found[4] == 0.5
    assert "nan" in str(found[0]) and "no box" in str(found[2]) and all(isinstance(found[n], Exception) for n in (0, 2))


def test_there_is_nothing_to_compare_with():
    (alone,) = rates(brightness, [0.5])
    assert isinstance(alone, ValueError) and "2 or more" in str(alone)
    survivor, failed = rates(lambda *_: [0.5, float("nan")], [0.5, 0.5])
    assert isinstance(survivor, ValueError) and isinstance(failed, ValueError)


def test_score_gives_it_one_prompt_at_a_time():
    scores = score(
        make_scorer("win_rate:brightness", WinRate(make_scorer("brightness", brightness))),
        pictures([0.1, 0.2, 0.9, 0.8]),
        list("aabb"),
        [{}] * 4,
        group=2,
    )
    assert scores.values.tolist() == [0, 1, 1, 0] and not scores.failures


class Judge:
    """Bradley-Terry on the brightness; what cannot be judged is what the caller says."""

    def __init__(self, fails=()):
        self.seen, self.fails = [], fails

    def __call__(self, images, prompts, metadata):
        raise AssertionError("a judge is not asked for scores")

    def prefer(self, images_a, images_b, prompts, metadata):
        a, b = (images[:, 0, 0, 0].tolist() for images in (images_a, images_b))
        self.seen += zip(a, b, [row["seed"] for row in metadata], strict=True)
        return [RuntimeError("no reply") if {x, y} in self.fails else x / (x + y) for x, y in zip(a, b, strict=True)]


def test_a_judge_decides_every_pair_once():
    judge, values = Judge(), [1.0, 2.0, 3.0, 4.0, 5.0]
    found = WinRate(make_scorer("judge", judge))(pictures(values), ["a"] * 5, [{"seed": value} for value in values])
    assert found == pytest.approx([sum(a / (a + b) for b in values if b != a) / 4 for a in values])
    assert len({frozenset(pair[:2]) for pair in judge.seen}) == len(judge.seen) == 10
    assert all(a == seed for a, _, seed in judge.seen)
    assert [sum(pair[0] == value for pair in judge.seen) for value in values] == [2] * 5  # first as often as second


def test_a_pair_without_a_verdict_counts_for_neither():
    values = [1.0, 2.0, 4.0]
    metadata = [{"seed": value} for value in values]
    found = WinRate(make_scorer("judge", Judge([{1.0, 2.0}])))(pictures(values), ["a"] * 3, metadata)
    assert found == pytest.approx([1 / 5, 2 / 6, (4 / 5 + 4 / 6) / 2])
    found = WinRate(make_scorer("judge", Judge([{1.0, 2.0}, {1.0, 4.0}])))(pictures(values), ["a"] * 3, metadata)
    assert "no reply" in str(found[0]) and found[1:] == pytest.approx([2 / 6, 4 / 6])


REWARD = """
from dataclasses import dataclass, field

LOADED = []

@dataclass(frozen=True)
class Loaded:
    counts: dict = field(default_factory=lambda: {"requests": 0})
    id = {"weights": "mine"}
    of_videos = True

    def load(self):
        LOADED.append(1)

    def __call__(self, images, prompts, metadata):
        return [float(len(LOADED))] * len(prompts)
"""


def test_a_win_rate_loads_and_describes_the_reward_inside(tmp_path):
    (tmp_path / "mine.py").write_text(REWARD)
    name = f"{tmp_path / 'mine.py'}:Loaded"
    scorer = load_reward(f"win_rate:{name}")
    inside = scorer.function.of
    assert (scorer.groupwise, scorer.of_videos, inside.groupwise, inside.of_videos) == (True, True, False, True)
    assert inside.identity == {"is": "mine.Loaded", "weights": "mine"}
    assert scorer.identity == {"is": "neighbor_grpo.rewards.preference.WinRate", "of": inside.identity}
    assert scorer.counts is inside.counts
    assert scorer.function(torch.zeros(2, 4, 3, 8, 8), ["a"] * 2, [{}] * 2) == [0.5, 0.5]
    assert inside.function(torch.zeros(1, 4, 3, 8, 8), ["a"], [{}]) == [1.0]
