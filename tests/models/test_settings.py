"""Settings that a family does not know are refused before weights are read; an evaluation has settings of its own."""

import json

import family_qwen_image
import family_sd3
import pytest
import torch
from mutations import is_one_line
from pipelines import build_flux
from runs import metrics, settings
from test_cli import mistake

from neighbor_grpo.config import load_config
from neighbor_grpo.errors import UserError
from neighbor_grpo.models.attach import add_lora
from neighbor_grpo.models.checks import enable_tiling
from neighbor_grpo.models.meta_model import meta_model
from neighbor_grpo.models.registry import load_model
from neighbor_grpo.models.sampling import fixed_noise, sample
from neighbor_grpo.models.text_cache import TextCache
from neighbor_grpo.planning.estimate import estimate
from neighbor_grpo.run.files import read_config
from neighbor_grpo.training.trainer import Trainer


@pytest.fixture(scope="module")
def unguided(tmp_path_factory):
    """Pipelines without an input for a guidance_scale."""
    place = tmp_path_factory.mktemp("unguided")
    for name, pipe in (("sd3", family_sd3.build()), ("schnell", build_flux(False)), ("qwen", family_qwen_image.build())):
        pipe.save_pretrained(place / name)
    return place


@pytest.mark.parametrize("name", ["sd3", "schnell", "qwen"])
def test_a_guidance_scale_that_does_nothing_is_refused(unguided, name):
    assert meta_model(unguided / name, height=32, width=32).guidance_scale is None
    for load in (load_model, meta_model):
        with pytest.raises(UserError, match=r"leave it out \(null\).*cfg") as caught:
            load(unguided / name, height=32, width=32, guidance_scale=4.0)
        assert is_one_line(caught.value)


def test_commands_refuse_it_before_weights_are_read(unguided, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("neighbor_grpo.run.weights.load_model", lambda *_, **__: pytest.fail("weights were read"))
    model, out = unguided / "sd3", tmp_path / "out"
    for command in ("sample", "evaluate"):
        options = ("--model", model, "--guidance-scale", 4, "--device", "cpu", "--out", out)
        assert "takes no guidance_scale" in mistake(capsys, command, *options, *(["--prompt", "x"] * (command == "sample")))
    for key in ("model.guidance_scale=4", "evaluate.guidance_scale=4", "evaluate.num_frames=5", "evaluate.height=33"):
        small = ("method={name: neighbor, group_size: 2, num_steps: 2, num_train_steps: 1, num_anchors: 1}", "model.height=32")
        said = mistake(capsys, "plan", f"model.path={model}", "model.width=32", *small, key)
        assert key.split("=")[0].split(".")[1] in said


def test_a_vae_without_tiles_is_asked_for_none():
    with pytest.raises(UserError, match="set vae_tiling to false"):
        enable_tiling(torch.nn.Identity())


# ---------------------------------------------------------------- an evaluation's own settings


def test_a_model_with_other_settings_shares_its_modules(tiny_flux):
    """It draws what a model that is loaded with those settings draws, and the first one is as it was."""
    changes = {"height": 48, "width": 32, "guidance_scale": 1.5, "cfg": 2.0}
    model, other = load_model(tiny_flux), load_model(tiny_flux, **changes)
    view = model.with_settings(**changes)
    for one in (model, other):
        add_lora(one.transformer, 2, 4, ["to_q"])  # as training does, after the view was made
        with torch.no_grad():
            for weight in (w for w in one.transformer.parameters() if w.requires_grad):
                weight.copy_(0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    drawn = [sample(one, one.encode(["a red circle"]), fixed_noise(one, [0], 1), 3, "euler") for one in (view, other, model)]
    assert drawn[0].shape[-2:] == (48, 32) and torch.equal(drawn[0], drawn[1]) and drawn[2].shape[-2:] == (32, 32)
    assert view.transformer is model.transformer and (model.height, model.cfg) == (32, 1.0) and view.times(4) != model.times(4)


def test_the_cache_of_a_size_is_its_own_where_the_size_conditions(place, pictures, tmp_path):
    model = load_model(place["i2v"], height=32, width=32, num_frames=5)
    cache, view = TextCache(model, tmp_path, 1.0), model.with_settings(height=48)
    assert cache.of(model) is cache and cache.of(view).directory != cache.directory
    assert cache.of(model.with_settings(cfg=2.0)).directory == cache.directory


def test_an_evaluation_draws_by_its_own_settings(tiny_flux, tmp_path):
    own = ["evaluate.height=48", "evaluate.width=32", "evaluate.guidance_scale=1.5", "evaluate.cfg=2", "evaluate.num_steps=2"]
    more = ["iterations=1", "watch=[jpeg_size]", "evaluate.prompts=2", "evaluate.seeds=1", "evaluate.solver=euler", *own]
    run = Trainer(load_config(None, settings(tiny_flux, tmp_path, *more))).run()
    model = load_model(tiny_flux, height=48, width=32, guidance_scale=1.5, cfg=2.0)
    images = sample(model, model.encode(["a red circle", "two blue stars"]), fixed_noise(model, [0, 1], 1), 2, "euler")
    reward = next(key for key in metrics(run)[0] if key.startswith("eval/") and key.endswith("brightness"))
    assert metrics(run)[0][reward] == pytest.approx(images.mean().item(), abs=1e-4)
    assert (
        read_config(run).evaluate.cfg == 2.0
        and json.loads((run / "run.json").read_text())["settings"]["evaluate"]["height"] == 48
    )


def test_the_plan_has_room_for_it(tiny_flux):
    small = "method={name: neighbor, group_size: 2, num_steps: 2, num_train_steps: 1, num_anchors: 1}"
    plain, large = (
        estimate(load_config(None, [f"model.path={tiny_flux}", small, "prompts.per_iteration=1", *more]), "cpu")
        for more in ([], ["evaluate.height=256", "evaluate.width=256"])
    )
    assert large.bytes("rollout") > 2 * plain.bytes("rollout") and large.bytes("decode") > 2 * plain.bytes("decode")
    assert large.bytes("update") == plain.bytes("update")


def test_runs_that_are_older_than_these_settings_resume(tiny_flux, tmp_path):
    run = Trainer(
        load_config(None, settings(tiny_flux, tmp_path, "iterations=1", "watch=[jpeg_size]", "evaluate.prompts=1"))
    ).run()
    record = json.loads((run / "run.json").read_text())
    for name in ("shift", "revision", "variant", "transformer"):
        del record["settings"]["model"][name]
    for name in ("height", "width", "num_frames", "guidance_scale", "cfg"):
        del record["settings"]["evaluate"][name]
    (run / "run.json").write_text(json.dumps(record))
    assert Trainer.resume(run)
