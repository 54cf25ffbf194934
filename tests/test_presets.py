"""The presets of the package: what they are, and what they resolve to."""

import json
from pathlib import Path

import presets as tool
import pytest

from neighbor_grpo.cli import main
from neighbor_grpo.compare.settings import load_comparison, read_comparison
from neighbor_grpo.config import Config, check_family, load_config, preset_names, read_preset
from neighbor_grpo.config.presets import LEVELS, TABLE
from neighbor_grpo.errors import UserError
from neighbor_grpo.methods import METHODS
from neighbor_grpo.models.registry import MODELS
from neighbor_grpo.run.files import begin, read_config
from neighbor_grpo.run.record import Record

COMPARISONS = json.loads((Path(__file__).parent / "comparisons.json").read_text())  # what their runs were before presets
MODEL_PRESETS = {
    "scenes",
    "words",
    "flux_dev",
    "flux_schnell",
    "sd35_medium",
    "flux2_klein",
    "qwen_image",
    "z_image_turbo",
    "wan21_t2v",
    "wan22_i2v",
    "hunyuan_video",
}


def flat(section, prefix=""):
    """Leaf keys of nested keys, dotted."""
    for key, value in section.items():
        if isinstance(value, dict) and value and key not in ("train", "scorers"):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


DEMO = {
    "iterations": 13,
    "method": {"name": "neighbor_late"},
    "optimizer": {"lr": 3e-4},
    "evaluate": {"every": 7, "prompts": 256, "seeds": 2},
}


def test_the_demonstration_differs_from_the_defaults_in_what_it_says():
    demo = load_config(presets=["demo"])
    assert demo == Config(**DEMO)
    assert {d.key for d in demo.differences()} == set(dict(flat(DEMO))) - {"evaluate.seeds"}
    assert {d.origin for d in demo.differences()} == {"preset demo"} and demo.presets == ("demo",)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_resolves(name):
    preset = read_preset(name)
    assert preset.summary and len(preset.summary) < 110 and ":\n" not in preset.summary
    if preset.is_comparison:
        assert read_comparison(name)[1]
    else:
        assert name in load_config(presets=[name]).presets


def test_there_is_one_for_every_method_and_every_kind_of_model():
    assert METHODS.keys() | MODEL_PRESETS <= set(preset_names())
    for name in MODEL_PRESETS:
        assert read_preset(name).family in MODELS and load_config(presets=[name]).model.path
    full = {"neighbor", "dance_grpo", "mix_grpo", "mix_grpo_flash", "mix_grpo_flash_star", "branch_grpo"}
    for name, method in METHODS.items():
        config = load_config(presets=[name])
        assert config.iterations == 300 and config.optimizer.weight_decay == 1e-4
        authors = {"eta", "clip", "kl", "kl_std", "reward_std", "split_noise", "dwell", "tail_count"}
        assert {
            key for key, value in vars(config.method).items() if value != getattr(method(), key)
        } <= authors  # test_published
        if name in full:
            assert config.model.lora is None and config.optimizer.lr == 1e-5
        else:
            rank, rate = 64 if name == "dgpo" else 32, 3e-5 if name == "fdfo" else 3e-4
            assert (config.model.lora.rank, config.model.lora.alpha, config.optimizer.lr) == (rank, 2 * rank, rate)


@pytest.mark.parametrize("name", COMPARISONS)
def test_the_runs_of_a_comparison_are_what_they_were(name):
    rows = dict(COMPARISONS[name])
    shared = rows.pop("every run")
    _, entries = load_comparison(name)
    assert [entry.name for entry in entries] == list(rows)
    for entry in entries:
        row = shared | rows[entry.name]
        defaults = Config(method={"name": row.get("method.name", "neighbor")}).model_dump(mode="json")
        assert dict(flat(entry.config.model_dump(mode="json"))) == dict(flat(defaults)) | row


def test_order_presets_below_files_below_overrides(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("preset: [dance_grpo, flux_dev]\niterations: 7\n")
    config = load_config(file, ["save_every=2"])
    assert config.presets == ("dance_grpo", "flux_dev") and config.method.name == "dance_grpo"
    assert (config.iterations, config.save_every, config.model.lora.rank, config.optimizer.lr) == (7, 2, 32, 1e-4)
    below = load_config(file, [], ["flux_schnell"])  # given on the command line, still below the file's own keys
    assert below.iterations == 7 and below.model.path == "black-forest-labs/FLUX.1-dev"
    assert load_config(presets=["flux_dev", "dance_grpo"]).model.lora is None  # the later over the earlier


def test_a_run_reads_its_own_settings_not_its_presets(tmp_path):
    config = load_config(None, ["optimizer.lr=1e-3", "seed=3"], ["demo"])
    begin(tmp_path, config, [], Record(config.model_dump(mode="json"), {}))
    again = read_config(tmp_path)
    assert again.presets == () and again.optimizer.lr == 1e-3
    origins = {d.key: d.origin for d in again.differences()}
    assert origins.pop("run_dir") == "code" and set(origins.values()) == {str(tmp_path / "config.yaml")}


@pytest.mark.parametrize(
    ("presets", "overrides", "message"),
    [
        (["dance_gropo"], [], "did you mean dance_grpo?"),
        (["nothing like it"], [], "neighbor-grpo presets"),
        (["scenes/compare"], [], "neighbor-grpo compare scenes/compare"),
        (["dance_grpo"], ["method.name=neighbor"], "preset dance_grpo is for method.name=dance_grpo"),
        (["flux_dev/dance_grpo"], ["method.name=mix_grpo"], "preset dance_grpo is for method.name=dance_grpo"),
        (["demo"], ["method.name=dance_grpo"], "preset demo is for method.name=neighbor_late"),
        (["dance_grpo", "flux_schnell"], [], "preset dance_grpo is for"),
        (["sd35_medium"], ["model.path=scenes"], "preset sd35_medium is for a StableDiffusion3Pipeline"),
    ],
)
def test_presets_that_do_not_fit_are_refused(presets, overrides, message):
    with pytest.raises(UserError) as caught:
        load_config(None, overrides, presets)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_family_is_checked_where_the_model_lies_here_and_else_by_the_loader(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    assert load_config(None, [f"model.path={tmp_path}"], ["wan21_t2v"]).model.num_frames == 33
    with pytest.raises(UserError, match="is a WanPipeline"):
        load_config(None, [f"model.path={tmp_path}"], ["flux_dev"])
    elsewhere = load_config(None, ["model.path=somebody/a-model"], ["flux_dev"])
    assert elsewhere.families == {"flux_dev": "FluxPipeline"}
    with pytest.raises(UserError, match="leave out the preset"):
        check_family(elsewhere.families, elsewhere.model.path, "WanPipeline")
    check_family(elsewhere.families, elsewhere.model.path, "FluxPipeline")


def test_the_command_lists_them_with_memory_and_level(capsys):
    assert main(["presets"]) == 0
    listed, legend = capsys.readouterr().out.split("\n\n")
    assert [line.split()[0] for line in listed.splitlines()] == preset_names()
    for line in listed.splitlines():
        preset = read_preset(line.split()[0])
        memory = f"{preset.memory:g} GB " if preset.memory else ""
        assert line.endswith(preset.summary) and f" {memory}{preset.level} " in " ".join(line.split())
    assert {line.split()[0] for line in legend.splitlines()} == {read_preset(name).level for name in preset_names()}


# ------------------------------------------------------------------------ how far each was tried, and what it takes


def test_the_table_says_of_every_preset_how_far_it_was_tried():
    table = json.loads(TABLE.read_text())
    assert list(table) == preset_names() and all(row["level"] in LEVELS for row in table.values())
    for name, row in table.items():
        assert ("memory" in row) == (not read_preset(name).is_comparison) and row.get("memory", 1) > 0
        if row["level"] == "bundled":
            assert name.startswith(("scenes/", "scenes_4/", "words/", "paper/")) or name == "demo"
    results = tool.ROOT / "benchmarks" / "results"
    words = json.loads((results / "words" / "results.json").read_text())
    figures = json.loads((tool.ROOT / "tests" / "reference.json").read_text())  # of the comparison in docs/results.md
    assert {name for name, row in table.items() if row["level"] == "bundled"} == {
        "demo",
        "scenes/bounded",
        "scenes/compare",
        "scenes/strict",
        "scenes/study",
        "scenes/wall",
        "scenes_4/compare",
        "words/compare",
        *(f"paper/{file.stem}" for file in (results / "paper").glob("*.json")),
        *(f"scenes/{name}" for name in figures["scenes/compare"]),
        *(f"words/{row['run']}" for row in words["table"]),
    }


def test_the_page_has_the_table():
    page = tool.PAGE.read_text()
    assert tool.written(tool.written(page, "levels", tool.levels()), "presets", tool.page()) == page


@pytest.mark.parametrize("name", ["demo", "scenes/branch_grpo"])
def test_the_memory_is_that_of_the_plan(name, tmp_path):
    assert read_preset(name).memory == pytest.approx(tool.memory(load_config(presets=[name]), tmp_path), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["sd35_medium", "flux_dev/neighbor_8", "flux2_klein", "z_image_turbo", "wan21_t2v", "hunyuan_video"]
)
def test_the_memory_of_published_models(name, tmp_path):
    assert read_preset(name).memory == pytest.approx(tool.memory(load_config(presets=[name]), tmp_path), rel=0.02)
