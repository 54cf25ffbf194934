import pytest
import yaml

from neighbor_grpo.config import DEMO, Config, describe, load_config
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


def test_a_resolved_configuration_reads_back_as_itself(tmp_path):
    config = load_config(None, ["method.temperature=2.5", "watch=[scenes_strict]", "ema=null"])
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(file) == config


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
        ("method.num_anchors=13", "num_anchors (B = 13) exceeds group_size (G = 12)"),
        ("method.num_train_steps=9", "num_train_steps (K = 9) exceeds the 8"),
        ("iterations=many", "iterations: input should be a valid integer"),
        ("seed", "write key=value"),
        ("watch=[a", "not valid YAML"),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(override, message):
    with pytest.raises(UserError) as caught:
        load_config(None, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_key_is_described():
    keys = {key for key, *_ in describe()}
    assert {"method.sigma", "model.lora.rank", "prompts.per_iteration", "optimizer.lr", "run_dir", "reward.train"} <= keys
    assert all(text for key, _, _, text in describe() if key != "method.name")


def test_without_a_file_it_is_the_demonstration_and_the_defaults_are_the_papers(tmp_path):
    assert load_config() == load_config(DEMO)
    (tmp_path / "empty.yaml").write_text("")
    paper = load_config(tmp_path / "empty.yaml")
    assert paper == Config()
    m = paper.method
    assert (m.sigma, m.group_size, m.num_anchors, m.num_train_steps, m.num_steps, m.p, m.clip) == (0.3, 12, 4, 4, 8, 0.8, 1e-4)
