"""The models of the package know few words: a prompt with another one is refused before anything is drawn."""

import pytest
from test_cli import mistake

from neighbor_grpo.models.bundled import BUNDLED
from neighbor_grpo.models.registry import load_model
from neighbor_grpo.models.text_cache import check_prompts
from neighbor_grpo.prompts.reading import read_prompts

KNOWN = {"words": 'the word "KATO" in red', "scenes": "a red circle", "scenes_4": "a red circle"}
UNKNOWN = [
    ("words", 'the word "QAT" in red', "'Q'"),
    ("words", 'the word "zor1" in blue', "'1'"),
    ("words", 'the word "żółw" in red', "'żół"),
    ("scenes", "a purple hexagon", "hexagon"),
    ("scenes_4", "红色的圆", "红"),
]


@pytest.mark.parametrize("name", BUNDLED)
def test_every_prompt_of_a_world_is_known(name):
    world = "words" if name == "words" else "scenes"
    check_prompts(load_model(name), [*read_prompts(world), *read_prompts(world, True)])


@pytest.mark.parametrize(("name", "text", "part"), UNKNOWN)
def test_an_unknown_word_is_refused_and_nothing_is_written(capsys, tmp_path, name, text, part):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text(f"{KNOWN[name]}\n{text}\n")
    for command in (
        ["sample", "--model", name, "--prompts", prompts, "--out", out],
        ["evaluate", "--model", name, "--prompts", prompts, "--measure", "diversity", "--out", out],
        [
            "train",
            f"model.path={name}",
            f"prompts.path={prompts}",
            "reward=jpeg_compressibility",
            f"run_dir={out}",
            "device=cpu",
        ],
    ):
        line = mistake(capsys, *command)
        assert part in line and "does not know" in line
        assert not out.exists() or not [file for file in out.rglob("*") if file.is_file()]
