"""neighbor-grpo plan, and its refusal of what does not fit, before any weights are read."""

import re
import shutil

import pytest
import torch
from published import flux_dev, sd35_medium
from runs import settings

from neighbor_grpo.cli import main
from neighbor_grpo.config import configured, load_config, override
from neighbor_grpo.errors import UserError
from neighbor_grpo.planning.estimate import estimate
from neighbor_grpo.planning.fit import SPARED, Place, fit, refuse
from neighbor_grpo.planning.plan import plan

FLUX = ["flux_dev/neighbor_8"]


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return flux_dev(tmp_path_factory.mktemp("flux_dev"))


@pytest.fixture(scope="module")
def short_flux(tmp_path_factory):
    """A third of its blocks, each as large."""
    return flux_dev(tmp_path_factory.mktemp("short"), num_layers=6, num_single_layers=13)


@pytest.fixture(scope="module")
def sd35(tmp_path_factory):
    return sd35_medium(tmp_path_factory.mktemp("sd35"))


@pytest.fixture
def weightless(tiny_flux, tmp_path):
    """A pipeline whose weights are gone."""
    place = tmp_path / "weightless"
    shutil.copytree(tiny_flux, place, ignore=shutil.ignore_patterns("*.safetensors"))
    return place


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    out = capsys.readouterr()
    return code, out.out, out.err


def changed(config, overrides):
    return configured(override(config.model_dump(mode="json"), overrides))


def test_a_plan_without_weights(capsys, weightless, tmp_path):
    code, out, err = run(capsys, "plan", *settings(weightless, tmp_path))
    assert (code, err) == (0, "")
    assert "24 forwards, NFE_old 3 a sample" in out and "trained (LoRA rank 2)" in out
    for phase in ("encode", "rollout", "decode", "update", "step"):
        assert re.search(rf"^  {phase} +[\d.]+ [kMG]B", out, re.M)
    assert re.search(r"^compute +[\d.]+ MFLOP a forward, [\d.]+ MFLOP a row trained, [\d.]+ MFLOP a picture", out, re.M)
    assert re.search(r"^time .* at 50% of [\d.]+ [GT]FLOP/s$", out, re.M)


def test_what_does_not_fit_is_one_line_and_what_it_says_fits(capsys, weightless, tmp_path):
    arguments = settings(weightless, tmp_path, "device=auto", "prompts.per_iteration=16")
    code, out, err = run(capsys, "plan", *arguments, "--memory", 0.005)
    assert code == 2 and "rollout" in out
    assert len(err.splitlines()) == 1 and re.search(r"does not fit: the \w+ needs [\d.]+ MB of 5 MB, [\d.]+ MB too much", err)
    overrides = re.search(r"it fits \([\d.]+ MB\) with (.*)$", err.strip())[1].split()
    code, out, err = run(capsys, "plan", *arguments, *overrides, "--memory", 0.005)
    assert (code, err) == (0, "")
    code, out, err = run(capsys, "plan", *arguments, "--memory", 0.0005)
    assert code == 2 and re.search(r"MB of 500 kB, .* too much even with ", err)


def test_time_is_the_counted_work_at_half_the_rate(capsys, weightless, tmp_path):
    config = load_config(None, settings(weightless, tmp_path))
    held, counted = estimate(config, "cpu"), plan(config)
    seconds = counted.seconds(held, 1, 1e9)
    assert seconds == {"rollout": 24 * held.forward / 5e8, "decode": 8 * held.decode / 5e8, "update": 8 * held.update / 5e8}
    assert counted.seconds(held, 2, 1e9)["rollout"] == seconds["rollout"] / 2
    for rate, there in ((["--tflops", 0.001], "1 GFLOP/s"), ([], "FLOP/s")):
        assert f"{there}" in run(capsys, "plan", *settings(weightless, tmp_path), *rate)[1]
    out = run(capsys, "plan", *settings(weightless, tmp_path, "device=auto"), "--memory", 24)[1]
    assert torch.cuda.is_available() or "time " not in out  # of a card that is not here


def test_mistakes(capsys, weightless, tmp_path):
    for arguments, message in (
        (["--processes", 3], "must be a multiple of --processes (3)"),
        (["model.height=33"], "multiples of 8"),
        (["model.path=nowhere"], "give a directory"),
        (["model.lora.targets=[nothing]"], "fit no layer"),
    ):
        code, _, err = run(capsys, "plan", *settings(weightless, tmp_path), *arguments)
        assert code == 2 and message in err and len(err.splitlines()) == 1
    (weightless / "vae" / "config.json").unlink()
    assert "vae/config.json" in run(capsys, "plan", *settings(weightless, tmp_path))[2]


def test_training_what_does_not_fit_is_refused_before_weights_are_read(capsys, weightless, tmp_path):
    """Hundreds of millions of states are more than any computer holds."""
    many = settings(weightless, tmp_path, "prompts.per_iteration=65536", "method.group_size=4096")
    code, _, err = run(capsys, "train", *many)
    assert code == 2 and len(err.splitlines()) == 1 and "does not fit: the " in err and "TB too much" in err
    assert not (tmp_path / "run").exists()


def test_a_runs_plan_is_the_commands(capsys, tiny_flux, tmp_path):
    arguments = settings(tiny_flux, tmp_path, "iterations=1")
    assert run(capsys, "train", *arguments)[0] == 0
    written = [line for line in (tmp_path / "run" / "plan.txt").read_text().splitlines() if not line.startswith("time")]
    printed = run(capsys, "plan", *arguments)[1].splitlines()
    assert written == [line for line in printed if not line.startswith("time")]


# ------------------------------------------------------------------------ published models


@pytest.mark.slow
def test_flux_dev_is_as_published(flux):
    """11.9 billion parameters; a forward at 720 x 720 is 37 TFLOP: two for each weight and token, and attention."""
    held = estimate(load_config(None, [f"model.path={flux}", "model.lora=null"], FLUX), "cuda")
    assert held.parameters == 11_901_408_320 and held.latent == 45 * 45 * 64
    assert held.resident["transformer"] == 4 * held.parameters and held.forward == pytest.approx(37.3e12, rel=0.01)
    assert held.peak > 200e9
    with pytest.raises(UserError, match=r"does not fit: .* GB too much; it fits .* with .*model\.lora\.rank=16"):
        refuse(load_config(None, [f"model.path={flux}", "model.lora=null"], FLUX), held, "cuda", 80e9)


@pytest.mark.slow
def test_sharding_divides_weights_gradients_and_optimizer(flux):
    config = load_config(None, [f"model.path={flux}", "model.lora=null"], FLUX)
    whole, eighth = estimate(config, "cuda", 8), estimate(config, "cuda", 8, sharded=True)
    assert sum(eighth.resident.values()) == pytest.approx(sum(whole.resident.values()) / 8)
    assert eighth.phases["update"]["gradients"] == 4 * whole.trained  # whole until a step's last backward
    assert eighth.phases["step"]["gradients"] == 4 * whole.trained / 8
    once = estimate(changed(config, ["batch.update=64"]), "cuda", 8, sharded=True)
    assert once.phases["update"]["gradients"] == 4 * whole.trained / 8
    assert eighth.phases["rollout"] == whole.phases["rollout"]


@pytest.mark.slow
def test_all_weights_of_flux_dev_are_planned_for_fsdp2(capsys, flux):
    """Advice names nothing that FSDP2 refuses."""
    keys, ranks = ["--preset", *FLUX, f"model.path={flux}", "model.lora=null"], ["--processes", 8, "--fsdp2"]
    code, _, err = run(capsys, "plan", *keys, *ranks, "--memory", 60)
    assert code == 2 and "8bit" not in err and "quantize" not in err
    assert run(capsys, "plan", *keys, "batch.update=16", *ranks, "--memory", 141)[0] == 0


@pytest.mark.slow
def test_what_takes_less(short_flux):
    """Each setting that is for memory makes what it is for smaller, and only that."""
    changes = [f"model.path={short_flux}", "batch.update=2", "model.gradient_checkpointing=false", "prompts.per_iteration=1"]
    config = load_config(None, changes, FLUX)
    plain = estimate(config, "cuda")
    less = {
        text: estimate(changed(config, [text]), "cuda")
        for text in (
            "model.gradient_checkpointing=true",
            "batch.update=1",
            "batch.rollout=6",
            "batch.decode=1",
            "batch.keep_on=cpu",
            "optimizer.name=adamw_8bit",
            "model.quantize=int8",
            "model.quantize=nf4",
            "ema=null",
        )
    }
    parameters = plain.resident["transformer"] / 2
    for text, phase, share in (
        ("model.gradient_checkpointing=true", "update", 0.2),
        ("batch.update=1", "update", 0.55),
        ("batch.rollout=6", "rollout", 0.55),
        ("batch.decode=1", "decode", 0.3),
    ):
        held = less[text]
        assert 0 < held.phases[phase]["activations"] < share * plain.phases[phase]["activations"]
        assert {name: parts for name, parts in held.phases.items() if name != phase} == {
            name: parts for name, parts in plain.phases.items() if name != phase
        }
    for phase, what in (("rollout", "states"), ("decode", "states"), ("update", "choices")):
        assert less["batch.keep_on=cpu"].phases[phase].get(what, 0) < 0.5 * plain.phases[phase][what]
    assert less["optimizer.name=adamw_8bit"].resident["optimizer"] < 0.3 * plain.resident["optimizer"]
    assert less["model.quantize=int8"].resident["transformer"] == pytest.approx(parameters, rel=0.01)
    assert less["model.quantize=nf4"].resident["transformer"] == pytest.approx(0.5625 * parameters, rel=0.01)
    assert "average" not in less["ema=null"].resident
    # torchao's weights are unpacked, all of them, before the first gradient; a block's at a time with checkpointing
    assert less["model.quantize=int8"].phases["update"]["activations"] > plain.phases["update"]["activations"] + parameters
    once_more = ["model.gradient_checkpointing=true"]
    both = estimate(changed(config, [*once_more, "model.quantize=int8"]), "cuda").phases["update"]["activations"]
    assert both < 1.2 * less[once_more[0]].phases["update"]["activations"]


@pytest.mark.parametrize(
    ("name", "size", "memory"),
    [
        pytest.param("flux", 512, 24e9, marks=pytest.mark.slow),
        pytest.param("flux", 1024, 48e9, marks=pytest.mark.slow),
        pytest.param("sd35", 1024, 16e9, marks=pytest.mark.slow),
    ],
)
def test_published_models_fit_common_cards(request, name, size, memory):
    place = request.getfixturevalue(name)
    config = load_config(None, [f"model.path={place}", f"model.height={size}", f"model.width={size}"])
    limit = (1 - SPARED) * memory
    found = fit(config, Place("cuda", limit))
    assert found.estimate.peak <= limit < estimate(config, "cuda").peak
    assert estimate(changed(config, found.overrides.split()), "cuda") == found.estimate
    for key in found.changes:  # none of them for nothing
        assert estimate(changed(config, [f"{k}={v}" for k, v in found.changes.items() if k != key]), "cuda").peak > limit
