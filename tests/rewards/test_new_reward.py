"""A user's own reward: the page docs/new-reward.md as written, and mistakes in a reward's file or settings."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from neighbor_grpo.config import load_config
from neighbor_grpo.errors import UserError
from neighbor_grpo.rewards.check import check
from neighbor_grpo.rewards.names import check_scorers
from neighbor_grpo.rewards.registry import load_reward
from neighbor_grpo.rewards.score import score

PAGE = Path(__file__).parents[2] / "docs" / "new-reward.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
COMMANDS = [shlex.split(line)[1:] for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A directory with the files of the page, each named in its first line."""
    for kind, block in BLOCKS:
        if kind == "python":
            (tmp_path / block.splitlines()[0].removeprefix("# ")).write_text(block)
        elif kind == "json":
            (tmp_path / "prompts.jsonl").write_text(block)
    monkeypatch.chdir(tmp_path)


def settings_of(arguments):
    """The settings of --scorer NAME key=number."""
    return (
        {arguments[1]: {key: float(value) for key, value in (pair.split("=") for pair in arguments[2:])}} if arguments else {}
    )


def test_the_rewards_of_the_page_pass_their_check(page):
    checked = [command[2:] for command in COMMANDS if command[:2] == ["rewards", "check"]]
    assert len(checked) == 5
    for name, *options in checked:
        assert check(load_reward(name, settings_of(options))).passed


def test_the_configurations_of_the_page_are_valid(page):
    trained = [command[1:] for command in COMMANDS if command[0] == "train"]
    assert len(trained) == 5
    for changes in trained:
        reward = load_config(None, changes).reward
        check_scorers(reward.scorers, reward.train)
        for name in reward.train:
            if "url" not in reward.scorers.get(name, {}):
                load_reward(name, reward.scorers)


def test_the_test_of_the_page_passes(page, tmp_path):
    space = {}
    exec((tmp_path / "test_my_reward.py").read_text(), space)
    space["test_white_is_better_than_black"]()


def test_metadata_reaches_the_reward_and_a_missing_key_costs_that_picture_only(page):
    images = torch.full((3, 3, 8, 8), 0.5)
    scores = score(load_reward("near.py:near"), images, ["a"] * 3, [{"brightness": 0.75}, {}, {"brightness": 0.5}])
    assert scores.values[[0, 2]].tolist() == [-0.25, 0.0]
    assert [failure.index for failure in scores.failures] == [1] and "brightness" in scores.failures[0].reason


def test_settings_decide_the_numbers_and_are_the_identity(page):
    scorer = load_reward("target.py:Target", {"target.py:Target": {"brightness": 0.25}})
    assert scorer.function(torch.full((1, 3, 8, 8), 1.0), ["a"], [{}]).tolist() == [-0.75]
    assert scorer.identity == {"is": "target.Target", "brightness": 0.25} and scorer.settings == {"brightness": 0.25}
    assert load_reward("target.py:Target").settings == {"brightness": 0.5}


WRONG = """
from pydantic.dataclasses import dataclass

@dataclass
class Required:
    path: str
    def __call__(self, images, prompts, metadata): ...

@dataclass
class Silent:
    path: str = ""

class Plain:
    def __call__(self, images, prompts, metadata):
        return [1.0] * len(prompts)

def function(images, prompts, metadata): ...

number = 3
"""


@pytest.mark.parametrize(
    ("name", "settings", "remedy"),
    [
        ("Required", {}, r"path: Field required; settings are path"),
        ("Required", {"path": 3}, r"path: .*string; settings are path"),
        ("Required", {"pfad": "x"}, r"pfad: unknown setting: settings are path"),
        ("Silent", {}, r"needs a method __call__"),
        ("Plain", {"path": 1}, "no settings, remove it"),
        ("function", {"path": 1}, "no settings, remove it"),
        ("number", {}, "no function number"),
        ("nothing", {}, "no function nothing"),
    ],
)
def test_mistakes_end_in_one_line_with_the_remedy(name, settings, remedy, tmp_path):
    (tmp_path / "wrong.py").write_text(WRONG)
    full = f"{tmp_path / 'wrong.py'}:{name}"
    with pytest.raises(UserError, match=remedy) as error:
        load_reward(full, {full: settings})
    assert "\n" not in str(error.value)


def test_a_file_that_is_missing_or_does_not_load(tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_module")
    for name, remedy in {
        f"{tmp_path / 'broken.py'}:f": "correct the file",
        f"{tmp_path / 'gone.py'}:f": "correct the path",
    }.items():
        with pytest.raises(UserError, match=remedy):
            load_reward(name)


def test_settings_of_an_unknown_reward_name_the_nearest():
    check_scorers({"hpsv2.1": {}, "mine": {}}, ["win_rate:mine"])
    with pytest.raises(UserError, match=r"scorers\.hpsv21.*hpsv2\.1"):
        check_scorers({"hpsv21": {}}, ["scenes"])


def test_a_class_without_fields_is_a_reward(tmp_path):
    (tmp_path / "plain.py").write_text(WRONG)
    scorer = load_reward(f"{tmp_path / 'plain.py'}:Plain")
    assert scorer.function(torch.zeros(2, 3, 8, 8), ["a"] * 2, [{}] * 2) == [1.0, 1.0]
    assert scorer.identity == {"is": "plain.Plain"}
