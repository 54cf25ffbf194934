"""The command line answers what it can without a library, and no library speaks through it."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
from runs import settings

from neighbor_grpo.cli import main
from neighbor_grpo.commands.main import parser
from neighbor_grpo.errors import UserError

SLOW = ("torch", "diffusers", "transformers", "accelerate", "rich", "matplotlib", "scipy")
IN_TURN = f"""
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from neighbor_grpo.cli import main
found = []
for arguments in json.loads(sys.argv[1]):
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code
    found.append([code, out.getvalue(), err.getvalue(), [name for name in {SLOW} if name in sys.modules]])
print(json.dumps(found))
"""


def run(*arguments, code=0, program=("-m", "neighbor_grpo"), **more):
    """Exit code as expected, and what was written to (stdout, stderr)."""
    done = subprocess.run([sys.executable, *program, *map(str, arguments)], capture_output=True, text=True, **more)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def in_turn(commands):
    """[exit code, stdout, stderr, slow libraries that are loaded] after each command, in one program that runs all of them."""
    out, err = run(json.dumps(commands), program=("-c", IN_TURN))
    assert err == ""
    return json.loads(out)


HELP = [
    [],
    ["train"],
    ["demo"],
    ["plan"],
    ["probe"],
    ["study"],
    ["compare"],
    ["presets"],
    ["sample"],
    ["evaluate"],
    ["arena"],
    ["arena", "serve"],
    ["arena", "invite"],
    ["export"],
    ["rewards"],
    ["rewards", "convert"],
    ["rewards", "check"],
    ["rewards", "serve"],
    ["scenes"],
    ["scenes", "pretrain"],
    ["scenes", "render"],
]


def test_help_is_quick_and_quiet():
    for command, (code, out, err, loaded) in zip(HELP, in_turn([[*command, "--help"] for command in HELP]), strict=True):
        assert (code, err, loaded) == (0, "", []) and out.startswith("usage: neighbor-grpo"), command


def test_the_program_itself_is_quick_and_quiet():
    out, err = run("--version")
    assert out.startswith("neighbor-grpo ") and err == ""
    out, err = run("train", "methd.sigma=1", code=2)
    assert out == "" and err.startswith("neighbor-grpo: ") and len(err.splitlines()) == 1


def test_rewards_help_lists_the_names():
    named = {"convert": ("hpsv2.1", "imagereward", "aesthetic"), "check": ("pickscore", "ocr", "geneval")}
    for names, (_, out, _, _) in zip(named.values(), in_turn([["rewards", name, "--help"] for name in named]), strict=True):
        assert all(name in out for name in names)


MISTAKES = [
    (["train", "methd.sigma=1"], "did you mean method?"),
    (["train", "method.sigma=3"], "method.sigma"),
    (["train", "method.name=dance"], "did you mean dance_grpo?"),
    (["train", "reward=scene"], "did you mean scenes"),
    (["train", "reward=mine.py:f"], "mine.py"),
    (["train", "watch=[diversty]"], "did you mean diversity"),
    (["train", "reward.scorers.hpsv2={weights: x}"], "did you mean hpsv2.1"),
    (["train", "--preset", "dance_gropo"], "did you mean dance_grpo?"),
    (["train", "--preset", "sd35_medium", "model.path=scenes"], "StableDiffusion3Pipeline"),
    (["train", "device=tpu"], "choose auto, cuda, mps or cpu"),
    (["train", "prompts.path=none.txt"], "no prompt file"),
    (["train", "evaluate.best=beauty"], "evaluate.best"),
    (["train", "none.yaml"], "no configuration file"),
    (["train", "--preset"], "--preset"),
    (["trian"], "train"),
    (["plan", "--memory", "0"], "--memory"),
    (["plan", "--processes", "3"], "must be a multiple"),
    (["probe", "--sigma", "2"], "--sigma"),
    (["compare", "scenes/compar"], "did you mean scenes/compare?"),
    (["compare", "scenes/compare", "budgt.seconds=1"], "did you mean budget?"),
    (["compare", "scenes/compare", "--part", "3/2"], "--part"),
    (["sample", "--steps", "0"], "--steps"),
    (["sample", "--prompt", "a", "--device", "tpu"], "choose auto, cuda, mps or cpu"),
    (["sample"], "--prompt TEXT"),
    (["arena", "serve", "none"], "no folder none"),
    (["arena", "invite", "none.db", "Ada"], "no database none.db"),
    (["evaluate", "--seeds", "x"], "--seeds"),
    (["evaluate", "--measure", "beauty"], "unknown metric or reward 'beauty'"),
    (["evaluate", "--prompts", "none.txt"], "no prompt file"),
    (["export", "none"], "no run in"),
    (["export", "none", "--format", "onnx"], "--format"),
    (["rewards", "convert", "hpsv2.1", "none.pt"], "none.pt"),
    (["rewards", "check", "beauty"], "unknown reward 'beauty'"),
    (["scenes", "pretrain", "--steps", "-1", "--out", "x"], "--steps"),
]


def test_a_mistake_is_one_line_and_quick():
    for (arguments, message), found in zip(MISTAKES, in_turn([arguments for arguments, _ in MISTAKES]), strict=True):
        code, out, err, loaded = found
        assert (code, out, loaded) == (2, "", []), arguments
        assert err.startswith("neighbor-grpo: ") and message in err and len(err.splitlines()) == 1, (arguments, err)


def test_the_package_is_imported_in_an_instant():
    code = (
        f"import sys, neighbor_grpo as n; print([m for m in {SLOW} + ('pydantic', 'numpy') if m in sys.modules], n.__version__)"
    )
    assert run(program=("-c", code))[0].split()[0] == "[]"
    code = f"import sys, neighbor_grpo.cli; print([m for m in {SLOW} + ('huggingface_hub',) if m in sys.modules])"
    assert run(program=("-c", code))[0].split() == ["[]"]  # so that they are told to be quiet before they are imported
    package = __import__("neighbor_grpo")
    assert all(getattr(package, name) for name in package.__all__) and set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError):
        _ = package.beauty


# ---------------------------------------------------------------- quiet


@pytest.mark.slow
def test_no_library_speaks_while_it_plans_trains_and_samples(tiny_flux, tmp_path):
    small = settings(tiny_flux, tmp_path, "iterations=1")
    sample = ["sample", "--run", str(tmp_path / "run"), "--prompt", "a red circle", "--out", str(tmp_path / "s")]
    mistake = ["plan", *small, "model.lora.targets=[nothing]"]  # which is known once the libraries are loaded
    (trained, out, err, _), (sampled, _, quiet, _), (refused, _, line, _) = in_turn([["train", *small], sample, mistake])
    assert (trained, err) == (0, "") and "optimizer.lr = 0.001 (default 0.0001)  override" in out and "1/1  " in out
    assert (sampled, quiet, refused) == (0, "", 2)
    assert len(line.splitlines()) == 1 and "fit no layer" in line


# ---------------------------------------------------------------- closed pipes


@pytest.mark.parametrize("arguments", [["train", "--help"], ["presets"]], ids=" ".join)
def test_a_reader_that_leaves_is_not_an_error(arguments):
    with subprocess.Popen(
        [sys.executable, "-m", "neighbor_grpo", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()  # before anything is written
        assert process.stderr.read() == ""
    assert process.returncode == 141


@pytest.mark.parametrize(
    "arguments", [["iterations=3", "--preset", "demo", "seed=7"], ["--preset", "demo", "iterations=3", "seed=7"]]
)
def test_keys_may_stand_before_and_behind_options(arguments):
    parsed = parser().parse_args(["train", *arguments])
    assert (sorted(parsed.config), parsed.preset) == (["iterations=3", "seed=7"], ["demo"])
    with pytest.raises(UserError, match="--sed"):
        parser().parse_args(["train", *arguments, "--sed", "3"])


def every_argument(parser):
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from every_argument(command)
        else:
            yield action


def test_numbers_and_places_of_every_command_are_checked():
    for action in every_argument(parser()):
        name = (action.option_strings or [action.dest])[0]
        assert action.type not in (int, float, Path), name  # which take any number, and leave ~ as it is
        if name in ("--seed", "--json", "--out", "run"):
            assert action.type is not None or action.nargs == 0, name


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["scenes", "render", "a red circle", "--seed", "-1"], "at least 0"),
        (["scenes", "render", "a red circle", "--seed", str(2**70)], "at most"),
        (["scenes", "pretrain", "--out", "x", "--seed", "1e3"], "whole number"),
        (["study", "scenes/study", "--json", "/nowhere/at/all.json"], "directory that exists"),
        (["doctor", "--json", "/"], "directory that exists"),
        (["sample", "--prompt", "x", "--steps", "0"], "at least 1"),
    ],
)
def test_a_number_or_place_that_cannot_be_is_one_line(arguments, remedy, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert remedy in said and len(said.splitlines()) == 1
