"""The command line answers what it can without a library, and no library speaks through it."""

import os
import subprocess
import sys

import pytest
from runs import settings

from neighbor_grpo import cli
from neighbor_grpo.errors import UserError

SLOW = ("torch", "diffusers", "transformers", "accelerate", "rich", "matplotlib", "scipy")
LOADED = f"""
import sys
from neighbor_grpo.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
print("LOADED", *(name for name in {SLOW} if name in sys.modules), file=sys.stderr)
sys.exit(code)
"""


def run(*arguments, code=0, program=("-m", "neighbor_grpo"), **more):
    """Exit code as expected, and what was written to (stdout, stderr)."""
    done = subprocess.run([sys.executable, *program, *map(str, arguments)], capture_output=True, text=True, **more)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def quickly(*arguments, code=0):
    """The same in a program that loads no slow library."""
    out, err = run(*arguments, code=code, program=("-c", LOADED))
    *lines, last = err.splitlines()
    assert last.split() == ["LOADED"]
    return out, lines


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
    ["export"],
    ["rewards"],
    ["rewards", "convert"],
    ["rewards", "check"],
    ["rewards", "serve"],
    ["scenes"],
    ["scenes", "pretrain"],
    ["scenes", "render"],
]


@pytest.mark.parametrize("command", HELP, ids=" ".join)
def test_help_is_quick_and_quiet(command):
    out, err = quickly(*command, "--help")
    assert out.startswith("usage: neighbor-grpo") and err == []


def test_rewards_help_lists_the_names():
    for command, names in (("convert", ("hpsv2.1", "imagereward", "aesthetic")), ("check", ("pickscore", "ocr", "geneval"))):
        out, _ = quickly("rewards", command, "--help")
        assert all(name in out for name in names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
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
        (["evaluate", "--seeds", "x"], "--seeds"),
        (["evaluate", "--measure", "beauty"], "unknown metric or reward 'beauty'"),
        (["evaluate", "--prompts", "none.txt"], "no prompt file"),
        (["rewards", "convert", "hpsv2.1", "none.pt"], "none.pt"),
        (["rewards", "check", "beauty"], "unknown reward 'beauty'"),
        (["scenes", "pretrain", "--steps", "-1", "--out", "x"], "--steps"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_quick(arguments, message):
    out, (line,) = quickly(*arguments, code=2)
    assert out == "" and line.startswith("neighbor-grpo: ") and message in line


def test_the_package_is_imported_in_an_instant():
    code = (
        f"import sys, neighbor_grpo as n; print([m for m in {SLOW} + ('pydantic', 'numpy') if m in sys.modules], n.__version__)"
    )
    assert run(program=("-c", code))[0].split()[0] == "[]"
    code = "import neighbor_grpo as n; assert all(getattr(n, name) for name in n.__all__) and set(n.__all__) <= set(dir(n))"
    run(program=("-c", code))
    with pytest.raises(AttributeError):
        _ = __import__("neighbor_grpo").beauty


def test_it_names_its_version():
    assert quickly("--version")[0].startswith("neighbor-grpo ")


# ---------------------------------------------------------------- quiet


def test_no_library_speaks_while_it_plans_and_trains(tiny_flux, tmp_path):
    small = settings(tiny_flux, tmp_path, "iterations=1")
    out, err = run("plan", *small)
    assert err == "" and "optimizer.lr = 0.001 (default 0.0001)  override" in out
    out, err = run("train", *small)
    assert err == "" and "1/1  " in out
    _, err = run("sample", "--run", tmp_path / "run", "--prompt", "a red circle", "--out", tmp_path / "s")
    assert err == ""
    _, err = run("train", *small, code=2)  # it is there already, which is known after the libraries were loaded
    assert len(err.splitlines()) == 1 and "another run" in err
    _, err = run("plan", "model.path=nowhere", code=2)
    assert len(err.splitlines()) == 1 and "no diffusers pipeline" in err


def test_ranks_are_quiet_too(tiny_flux, tmp_path):
    place = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "neighbor_grpo")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    _, err = run("train", *settings(tiny_flux, tmp_path, "iterations=1"), program=place, env=environment)
    assert err == ""


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
    parsed = cli._parser().parse_args(["train", *arguments])
    assert (sorted(parsed.config), parsed.preset) == (["iterations=3", "seed=7"], ["demo"])
    with pytest.raises(UserError, match="--sed"):
        cli._parser().parse_args(["train", *arguments, "--sed", "3"])
