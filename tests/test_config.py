"""The configuration: files, overrides, methods, mistakes, and where values came from."""

import pytest
import yaml

from neighbor_grpo.config import Config, Lora, describe, load_config, settings_lines
from neighbor_grpo.errors import UserError


def test_file_and_overrides(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("method: {sigma: 0.5, p: 2}\nmodel: {lora: null}\n")
    config = load_config(file, ["method.sigma=0.2", "optimizer.lr=1e-5", "reward={scenes: 1, jpeg_compressibility: 0.5}"])
    assert (config.method.sigma, config.method.p, config.model.lora) == (0.2, 2.0, None)
    assert config.optimizer.lr == 1e-5
    assert config.reward.train == {"scenes": 1.0, "jpeg_compressibility": 0.5}
    assert load_config(file, ["model.lora.rank=4"]).model.lora.rank == 4


@pytest.mark.parametrize(
    ("overrides", "train", "watch"),
    [
        (["reward=a"], {"a": 1.0}, None),
        (["reward={a: 2, b: 1}", "watch=[c]"], {"a": 2.0, "b": 1.0}, ["c"]),
        (["reward.train=a", "reward.watch=[c]"], {"a": 1.0}, ["c"]),
        (["reward={a: 1}", "reward={b: 3}"], {"b": 3.0}, None),
        (["watch=[c]", "reward={train: {a: 0.5}, overlap: true}"], {"a": 0.5}, ["c"]),
        (["reward={train: a, watch: [c]}", "watch=[d]", "reward=b"], {"b": 1.0}, ["d"]),
    ],
)
def test_short_and_long_forms_of_the_reward_section(tmp_path, overrides, train, watch):
    config = load_config([], overrides)
    assert (config.reward.train, config.reward.watch) == (train, watch)
    file = tmp_path / "a.yaml"
    file.write_text("reward: {train: {x: 1}, max_failed: 0.3, scorers: {x: {weights: w}}}\n")
    over = load_config(file, overrides)
    assert (over.reward.train, over.reward.max_failed, over.reward.scorers) == (train, 0.3, {"x": {"weights": "w"}})


def test_without_anything_it_is_the_papers_recipe(tmp_path):
    (tmp_path / "empty.yaml").write_text("")
    assert load_config() == load_config(tmp_path / "empty.yaml") == Config()
    m = Config().method
    assert (m.sigma, m.group_size, m.num_anchors, m.num_train_steps, m.num_steps, m.p, m.clip) == (0.3, 12, 4, 4, 8, 0.8, 1e-4)
    assert Config().iterations == 300


def test_a_resolved_configuration_reads_back_as_itself(tmp_path):
    for overrides in (["method.temperature=2.5", "watch=[scenes_strict]", "ema=null"], ["method.name=branch_grpo"]):
        config = load_config(None, overrides)
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        assert load_config(file) == config


def test_another_method_starts_from_its_own_defaults():
    config = load_config(None, ["method.sigma=0.5", "method.name=dance_grpo", "method.eta=0.2"])
    assert (config.method.num_steps, config.method.eta) == (25, 0.2)
    assert load_config(None, ["method.num_steps=5"]).method.num_steps == 5


def test_ones_own_method_has_its_own_keys(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    config = load_config(None, [f"method.name={file}:Mine", "method.width=3", "method.group_size=4"])
    assert (config.method.width, config.method.group_size, type(config.method).__name__) == (3, 4, "Mine")
    rows = {d.key: d.value for d in config.differences()}
    assert rows == {"method.name": f"{file}:Mine", "method.width": 3, "method.group_size": 4}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(tmp_path / "config.yaml") == config
    keys = {key.name for key in describe(Config, method=type(config.method))}
    assert {"method.name", "method.width", "method.group_size"} <= keys and "method.sigma" not in keys
    with pytest.raises(UserError, match=r"did you mean method\.width\?"):
        load_config(None, [f"method.name={file}:Mine", "method.widht=3"])
    with pytest.raises(UserError, match=r"no file nowhere\.py"):
        load_config(None, ["method.name=nowhere.py:Mine"])


MINE = """
from pydantic.dataclasses import dataclass

from neighbor_grpo.methods.neighbor import Neighbor
from neighbor_grpo.methods.protocol import Method


@dataclass(frozen=True)
class Mine(Method):
    group_size: int = 2
    num_steps: int = 4
    width: int = 1

    def rollout(self, velocity, noise, times, iteration):
        return Neighbor(group_size=self.group_size, num_anchors=1).rollout(velocity, noise, times, iteration)

    def updates(self, tree, adv, generators, iteration):
        return []

    def loss(self, policy, rows):
        return policy(rows.x, rows.t).flatten(1).sum(1), {}
"""


# ---------------------------------------------------------------- where values came from


def test_every_value_that_is_not_its_default_has_an_origin(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("seed: 3\noptimizer: {lr: 2.0e-5, warmup: 0}\nmodel: {lora: {rank: 4}}\n")
    config = load_config(file, ["optimizer.lr=3e-5", "model.lora.alpha=8"], ["dance_grpo"])
    rows = {d.key: (d.value, d.default, d.origin) for d in config.differences()}
    assert rows == {
        "seed": (3, 0, str(file)),
        "model.lora.rank": (4, 16, str(file)),
        "model.lora.alpha": (8.0, 16.0, "override"),
        "method.name": ("dance_grpo", "neighbor", "preset dance_grpo"),
        "method.reward_std": ("sample", "population", "preset dance_grpo"),
        "optimizer.lr": (3e-5, 1e-4, "override"),
    }
    lines = settings_lines(config)
    assert lines[0].split() == ["preset", "dance_grpo"]
    assert "settings    seed = 3 (default 0)  " + str(file) in lines
    assert any("optimizer.lr = 3e-05 (default 0.0001)  override" in line for line in lines)


def test_origins_survive_copies_and_know_what_was_changed_in_python():
    config = load_config(None, ["seed=3", "iterations=5"]).model_copy(update={"seed": 4, "save_every": 1})
    assert {d.key: d.origin for d in config.differences()} == {"seed": "code", "iterations": "override", "save_every": "code"}
    assert Config() == load_config(None, ["seed=0"]) and not Config().differences() and not settings_lines(Config())


def test_a_section_that_is_left_out_is_one_difference():
    (found,) = load_config(None, ["model.lora=null"]).differences()
    assert (found.key, found.value, found.default) == ("model.lora", None, Lora().model_dump(mode="json"))


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.sigmaa=1", "unknown key method.sigmaa: did you mean method.sigma?"),
        ("methd.sigma=1", "unknown key methd: did you mean method?"),
        ("optimiser.lr=1", "unknown key optimiser: did you mean optimizer?"),
        ("model.lora.rnk=4", "unknown key model.lora.rnk: did you mean model.lora.rank?"),
        ("method.group_size=1", "method.group_size: input should be greater than or equal to 2"),
        ("method.sigma=0", "method.sigma: input should be greater than 0"),
        ("method.p=2.5", "method.p: input should be less than or equal to 2"),
        ("method.temperature=warm", "method.temperature: "),
        ("method.num_anchors=13", "num_anchors (B = 13) exceeds group_size (G = 12)"),
        ("method.num_train_steps=9", "num_train_steps (K = 9) exceeds the 8"),
        ("method=dance_grpo", "method.name=dance_grpo"),
        ("iterations=many", "iterations: input should be a valid integer"),
        ("evaluate.solver=rk4", "choose euler, heun, dpmpp_2m or dpmpp_3m"),
        ("device=tpu", "unknown device 'tpu': choose auto, cuda, mps or cpu"),
        ("model.quantize=nf5", "choose nf4, int8 or fp8"),
        ("preset=demo", "--preset demo"),
        ("seed", "write key=value"),
        ("watch=[a", "not valid YAML"),
        ("model.path=my #1", "write the value in quotes"),
        ("model.lora.path=#1", "write the value in quotes"),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(override, message):
    with pytest.raises(UserError) as caught:
        load_config(None, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_of_another_method_names_the_method():
    with pytest.raises(UserError, match=r"unknown key method\.sigma of dance_grpo"):
        load_config(None, ["method.name=dance_grpo", "method.sigma=0.3"])


def test_every_key_is_described():
    keys = {key.name for key in describe(Config)}
    assert {"method.sigma", "model.lora.rank", "prompts.per_iteration", "optimizer.lr", "run_dir", "reward.train"} <= keys
    assert all(key.text for key in describe(Config) if key.name != "method.name")
