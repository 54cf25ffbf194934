"""What is loaded, and what is refused before anything is."""

import json
import shutil
import sys

import pytest
import torch

from neighbor_grpo.errors import UserError
from neighbor_grpo.models.devices import pick_device, pick_dtype
from neighbor_grpo.models.meta_model import meta_model
from neighbor_grpo.models.registry import load_model


@pytest.mark.parametrize("load", [load_model, meta_model])
def test_a_component_of_another_library_is_refused_and_not_imported(tiny_flux, tmp_path, monkeypatch, load):
    (tmp_path / "foreign_module.py").write_text("class Encoder: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    place = shutil.copytree(tiny_flux, tmp_path / "pipeline")
    index = json.loads((place / "model_index.json").read_text())
    index["text_encoder"] = ["foreign_module", "Encoder"]
    (place / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"foreign_module\.Encoder: .*diffusers or transformers"):
        load(place)
    assert "foreign_module" not in sys.modules


def test_a_name_that_is_not_a_class_is_a_users_mistake(tiny_flux, tmp_path):
    place = shutil.copytree(tiny_flux, tmp_path / "pipeline")
    index = json.loads((place / "model_index.json").read_text())
    for name in ("NewTransformer", "utils"):
        (place / "model_index.json").write_text(json.dumps(index | {"transformer": ["diffusers", name]}))
        with pytest.raises(UserError, match=f"no class {name}"):
            meta_model(place)


def test_devices_and_types_by_name():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32
    assert pick_dtype("auto", torch.device("cuda")) == pick_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    with pytest.raises(UserError, match="'gpu': choose auto, cuda, mps or cpu"):
        pick_device("gpu")
    with pytest.raises(UserError, match="'half': choose auto, float32 or bfloat16"):
        pick_dtype("half", torch.device("cpu"))
