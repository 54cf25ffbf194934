import json
import os
import re
import subprocess
import sys

import pytest
from diffusers import DiffusionPipeline
from PIL import Image
from runs import settings

from neighbor_grpo.cli import main
from neighbor_grpo.files.listing import Picture, read_listing
from neighbor_grpo.models.bundled import BUNDLED


def run(capsys, *args):
    code = main([str(a) for a in args])
    out = capsys.readouterr()
    return code, out.out, out.err


def mistake(capsys, *args):
    """The one line of a mistake."""
    code, _, err = run(capsys, *args)
    assert code == 2
    assert len(err.strip().splitlines()) == 1, err
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.sigmaa=1", "did you mean method.sigma?"),
        ("model.path=nowhere", "give a directory"),
        ("method.group_size=1", "greater than or equal to 2"),
        ("method.num_anchors=5", "exceeds group_size"),
        ("method.num_train_steps=4", "exceeds the 3"),
        ("method.sigma=1.5", "method.sigma"),
        ("method.p=0", "method.p"),
        ("reward=beauty", "unknown reward 'beauty'"),
        ("reward=nofile.py:f", "file nofile.py"),
        ("reward=scene", "did you mean scenes"),
        ("watch=[beauty]", "metric or reward"),
        ("evaluate.best=beauty", "evaluate.best"),
        ("method.name=dance", "did you mean dance_grpo?"),
        ("prompts.path=none.txt", "no prompt file"),
        ("device=tpu", "unknown device 'tpu': choose auto, cuda, mps or cpu"),
        ("model.lora.targets=[nothing]", "fit no layer"),
        ("model.height=33", "multiples of 8"),
    ],
)
def test_mistakes_in_the_configuration_write_nothing(capsys, tiny_flux, tmp_path, override, message):
    assert message in mistake(capsys, "train", *settings(tiny_flux, tmp_path), override)
    assert not (tmp_path / "run").exists()


def test_mistakes_in_files(capsys, tiny_flux, tmp_path):
    arguments = settings(tiny_flux, tmp_path)
    (tmp_path / "empty.txt").write_text("")
    assert "is empty" in mistake(capsys, "train", *arguments, f"prompts.path={tmp_path}/empty.txt")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt"\n')
    assert "line 2" in mistake(capsys, "train", *arguments, f"prompts.path={tmp_path}/bad.jsonl")
    (tmp_path / "bad.py").write_text("def f(:\n")
    assert "does not load" in mistake(capsys, "train", *arguments, f"reward={tmp_path}/bad.py:f")
    (tmp_path / "good.py").write_text("def f(): pass\n")
    assert "no function g" in mistake(capsys, "train", *arguments, f"reward={tmp_path}/good.py:g")
    (tmp_path / "bad.yaml").write_text("method: [\n")
    assert "not valid YAML" in mistake(capsys, "train", tmp_path / "bad.yaml")
    assert "no configuration file" in mistake(capsys, "train", tmp_path / "none.yaml")
    assert "no run in" in mistake(capsys, "train", "--resume", tmp_path)


def test_a_reward_that_fails_is_one_line_and_the_run_can_go_on(capsys, tiny_flux, tmp_path):
    err = mistake(capsys, "train", *settings(tiny_flux, tmp_path, function="nan"))
    assert "nan (prompt 'two blue stars')" in err and "--resume" in err


def test_train_then_sample_then_evaluate(capsys, tiny_flux, tmp_path):
    code, out, _ = run(capsys, "train", *settings(tiny_flux, tmp_path, "iterations=1"))
    assert code == 0
    assert "NFE_old 3 a sample" in out and "NFE_theta 1 a sample" in out and "8 forward-backwards" in out
    drawn = ("--prompt", "a red star", "--seed", 3, "--seed", 4, "--out", tmp_path / "s")
    code, out, _ = run(capsys, "sample", "--run", tmp_path / "run", *drawn)
    assert code == 0
    assert Image.open(tmp_path / "s" / "0000-seed3.png").size == (32, 32)
    rows = [Picture("a red star", 0, seed, f"0000-seed{seed}.png") for seed in (3, 4)]
    assert read_listing(tmp_path / "s") == rows and len(list((tmp_path / "s").iterdir())) == 3
    code, out, _ = run(
        capsys,
        "evaluate",
        "--run",
        tmp_path / "run",
        "--prompts",
        tmp_path / "prompts.txt",
        "--measure",
        "diversity",
        "--measure",
        "jpeg_compressibility",
        "--seeds",
        2,
        "--out",
        tmp_path / "e",
    )
    assert code == 0
    listed = read_listing(tmp_path / "e")
    assert all((tmp_path / "e" / row.file).is_file() for row in listed) and [row.seed for row in listed[:2]] == [0, 1]
    stored = json.loads((tmp_path / "e" / "result.json").read_text())
    assert stored["values"].keys() == stored["intervals"].keys() == {"diversity", "jpeg_compressibility"}
    assert f"| diversity | {stored['values']['diversity']:.4g} |" in out
    kept = {"steps", "solver", "seeds", "prompts", "prompts_sha256", "height", "run", "model", "dtype", "release", "scorers"}
    assert kept <= stored["settings"].keys()


def test_evaluate_needs_a_finished_run_and_known_measures(capsys, tiny_flux, tmp_path):
    assert "no run in" in mistake(capsys, "evaluate", "--run", tmp_path)
    assert "metric or reward" in mistake(capsys, "evaluate", "--model", tiny_flux, "--measure", "beauty")
    assert "--prompt TEXT" in mistake(capsys, "sample", "--model", tiny_flux)


def test_scenes_render_draws_by_rule(capsys, tmp_path):
    code, _, _ = run(capsys, "scenes", "render", "two red stars", "a blue circle above a red square", "--out", tmp_path)
    assert code == 0
    assert Image.open(tmp_path / "0001.png").size == (64, 64)
    assert "'a dog'" in mistake(capsys, "scenes", "render", "a dog", "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_help_lists_every_key(capsys):
    code, text, _ = run(capsys, "train", "--help")
    assert code == 0
    keys = ("method.sigma=0.3", "model.lora.rank=", "optimizer.lr=", "prompts.per_iteration=", "reward.train=", "save_every=")
    for key in keys:
        assert re.search(rf"^  {re.escape(key)}", text, re.M)
    assert "method.eta" not in text
    assert re.search(r"^  method\.eta=0\.3", run(capsys, "train", "--help", "--method", "dance_grpo")[1], re.M)
    assert "did you mean dance_grpo?" in mistake(capsys, "train", "--help", "--method", "dance_gpro")


def test_the_command_is_installed():
    assert subprocess.run([sys.executable, "-m", "neighbor_grpo.cli", "scenes", "--help"], capture_output=True).returncode == 0


@pytest.mark.slow
def test_scenes_pretrain_makes_a_pipeline_that_loads(capsys, tmp_path):
    arguments = ("scenes", "pretrain", "--out", tmp_path / "model", "--vae-steps", 1, "--steps", 1, "--pictures", 4)
    assert run(capsys, *arguments)[0] == 0
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a red circle", height=64, width=64, num_inference_steps=1, max_sequence_length=12).images[0].size == (64, 64)
    assert sum(file.stat().st_size for file in (tmp_path / "model").rglob("*")) < 12e6
    assert "not empty" in mistake(capsys, *arguments)


@pytest.mark.parametrize("model", BUNDLED.values(), ids=list(BUNDLED))
def test_the_bundled_weights_are_small(model):
    assert 5e6 < sum(file.stat().st_size for file in model.rglob("*") if file.is_file()) < 12e6


@pytest.mark.parametrize(
    ("shell", "environment"),
    [(">&-", {}), ("2>&-", {}), ("", {"PYTHONIOENCODING": "ascii"}), ("", {"LC_ALL": "C", "PYTHONUTF8": "0"})],
)
def test_a_terminal_that_is_closed_or_knows_few_letters_is_written_to(shell, environment):
    line = f"{sys.executable} -m neighbor_grpo presets {shell}"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_the_shells_script_completes_commands_options_and_names(capsys, tmp_path):
    """Asked of bash itself, as the TAB key does."""
    pytest.importorskip("shtab")
    code, script, _ = run(capsys, "completion", "bash")
    assert code == 0
    (tmp_path / "completion").write_text(script)

    def completed(*words):
        line = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_neighbor_grpo; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "-c", f"source {tmp_path}/completion; {line}"], capture_output=True, text=True)
        return done.stdout.split()

    assert completed("neighbor-grpo", "tr") == ["train"]
    assert completed("neighbor-grpo", "train", "--pre") == ["--preset"]
    assert {"flux_dev", "flux_dev/neighbor_8"} <= set(completed("neighbor-grpo", "train", "--preset", "flux"))
    assert completed("neighbor-grpo", "train", "--help", "--method", "dance") == ["dance_grpo"]
    assert "choose from" in mistake(capsys, "completion", "fish")


def test_completion_without_its_package_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert "neighbor-grpo[completion]" in mistake(capsys, "completion", "zsh")
