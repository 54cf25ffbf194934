"""Models without weights: every family is planned, on any device, and trains what the true one does."""

import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch

from neighbor_grpo.config import load_config
from neighbor_grpo.errors import UserError
from neighbor_grpo.methods import METHODS
from neighbor_grpo.models.devices import pick_dtype
from neighbor_grpo.models.lora import train_all
from neighbor_grpo.models.meta_model import meta_model
from neighbor_grpo.models.registry import load_model
from neighbor_grpo.planning.estimate import estimate
from neighbor_grpo.planning.footprint import nbytes

FAMILIES = {file.stem[7:]: import_module(file.stem) for file in sorted(Path(__file__).parent.glob("family_*.py"))}


@pytest.fixture(scope="module", params=FAMILIES)
def made(request, tmp_path_factory):
    """(family, saved pipeline, the same without weights)"""
    place = tmp_path_factory.mktemp(request.param)
    FAMILIES[request.param].build().save_pretrained(place / "whole")
    shutil.copytree(place / "whole", place / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    return FAMILIES[request.param], place / "whole", place / "bare"


def model_settings(family) -> dict:
    height, width = family.SIZES[0]
    frames = {"num_frames": family.FRAMES} if hasattr(family, "FRAMES") else {}
    return {"height": height, "width": width, **frames}


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16])
def test_parameters_are_the_loaded_ones_but_for_their_values(made, dtype):
    family, whole, bare = made
    true, model = load_model(whole, dtype=dtype, **model_settings(family)), meta_model(bare, dtype, **model_settings(family))
    names = ("transformer", "vae", *model.encoders)
    for name in names:
        there, here = (getattr(pipe, name).state_dict() if getattr(pipe, name) else {} for pipe in (true.pipe, model.pipe))
        assert {key: (t.shape, t.dtype) for key, t in here.items()} == {key: (t.shape, t.dtype) for key, t in there.items()}
        assert all(tensor.is_meta for tensor in here.values())
    assert model.times(4) == true.times(4)


@pytest.mark.parametrize(("device", "lora"), [("cuda", True), pytest.param("cpu", False, marks=pytest.mark.slow)])
def test_every_family_is_planned_without_weights(made, device, lora):
    family, whole, bare = made
    settings = [f"model.{key}={value}" for key, value in model_settings(family).items()]
    targets = f"model.lora.targets=[{', '.join(family.LORA)}]" if lora else "model.lora=null"
    small = "method={name: neighbor, group_size: 2, num_steps: 2, num_train_steps: 1, num_anchors: 1}"
    held = estimate(load_config(None, [f"model.path={bare}", *settings, targets, small]), device)
    assert held.update > 2 * held.forward * 0.9 > 0 and held.decode > 0
    assert all(parts.get("activations", 1) > 0 for parts in held.phases.values())
    assert (held.trained == held.parameters) != lora
    transformer = load_model(whole, dtype=pick_dtype("auto", torch.device(device))).transformer
    if not lora:
        train_all(transformer)
    assert held.resident["transformer"] == nbytes((*transformer.parameters(), *transformer.buffers()))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_planned(method):
    held = estimate(load_config(None, [f"method.name={method}"]), "cuda")
    assert "states" in held.phases["rollout"] and {"choices", "activations"} <= held.phases["update"].keys()


def test_a_configuration_that_is_broken_is_a_users_mistake(made):
    _, _, bare = made
    (bare / "transformer" / "config.json").rename(bare / "transformer" / "aside.json")
    try:
        with pytest.raises(UserError, match=r"transformer.config\.json"):
            meta_model(bare)
    finally:
        (bare / "transformer" / "aside.json").rename(bare / "transformer" / "config.json")
