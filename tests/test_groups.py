"""Groups on disk: the pictures, rewards and advantages of the rollouts of one prompt."""

import json
import shutil

import pytest
from runs import advantages, metrics
from test_resume import cut
from test_trainer import train

from neighbor_grpo.config import training_prompts
from neighbor_grpo.files.images import read_file
from neighbor_grpo.run import files
from neighbor_grpo.run.groups import read_groups
from neighbor_grpo.training.schedule import scheduled
from neighbor_grpo.training.trainer import Trainer


@pytest.fixture(scope="module")
def run(tiny_flux, tmp_path_factory):
    """Four iterations, evaluated at the second and the last; one picture of every group has no score."""
    changes = ("iterations=4", "evaluate.every=2", "reward.max_failed=1", "keep_checkpoints=4", "evaluate.prompts=1")
    return train(tiny_flux, tmp_path_factory.mktemp("groups"), *changes, function="sometimes")


def test_a_group_is_kept_of_the_first_iteration_and_with_each_evaluation(run):
    config, groups = files.read_config(run), list(read_groups(run))
    assert [group.iteration for group in groups] == [1, 2, 4]
    prompts = [prompt.text for prompt in training_prompts(config.prompts)]
    for group in groups:
        assert group.prompt == prompts[scheduled(len(prompts), 2, group.iteration - 1, config.seed)[0]]
        (rewards,) = group.rewards.values()
        assert len(group.files) == len(rewards) == 4 and rewards.count(None) == 1
        for file, reward in zip(group.files, rewards, strict=True):
            assert reward is None or read_file(file).mean().item() == pytest.approx(reward, abs=1 / 255)
        assert group.advantages == pytest.approx(advantages(config.method, rewards), abs=1e-5)
        assert group.advantages[rewards.index(None)] == 0


def test_a_resumed_run_keeps_the_same_groups_and_none_of_later_iterations(run, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "000004")
    shutil.rmtree(again / "groups" / "000004")
    for folder in ("samples", "groups"):
        (again / folder / "000009").mkdir()
    (again / "run.json").write_text((again / "run.json").read_text().replace('"finished"', "null"))
    Trainer.resume(again).run()
    assert metrics(again)[-1]["iteration"] == 4
    for folder in ("samples", "groups"):
        assert {f.name: f.read_bytes() for f in (run / folder).glob("0*/*")} == {
            f.name: f.read_bytes() for f in (again / folder).glob("0*/*")
        }


def test_what_is_damaged_is_left_out_and_what_is_shown_is_plain_json(run, tmp_path):
    shutil.copytree(run / "groups", tmp_path / "groups")
    cut(tmp_path / "groups" / "000002" / "03.png")
    assert [group.iteration for group in read_groups(tmp_path)] == [1, 4]
    assert list(read_groups(tmp_path / "groups")) == []  # an older run
    found = json.loads((tmp_path / "groups" / "000001" / "group.json").read_text())
    assert found.keys() == {"prompt", "rewards", "advantages"}
