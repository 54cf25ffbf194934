"""Exports of a run draw what the run saw, in plain diffusers or by the other loader's own arithmetic."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from runs import settings
from safetensors import safe_open
from safetensors.torch import load_file
from test_cli import mistake, run

from neighbor_grpo.config import load_config
from neighbor_grpo.models.registry import load_model
from neighbor_grpo.models.sampling import sample
from neighbor_grpo.run.weights import load_trained
from neighbor_grpo.training.trainer import Trainer

FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module", params=["lora", "full"])
def trained(request, tiny_flux, tmp_path_factory):
    home = tmp_path_factory.mktemp(request.param)
    kind = ("model.lora.alpha=6",) if request.param == "lora" else ("model.lora=null",)
    more = (*kind, "ema=null", "optimizer.lr=1e-2", "watch=[saturation]", "evaluate.every=1", "evaluate.best=saturation")
    return request.param, Trainer(load_config(None, settings(tiny_flux, home, *more))).run()


def picture(model):
    noise = model.noise(1, torch.Generator().manual_seed(0))
    return sample(model, model.encode(["a red circle"]), noise[None], 3, "euler")[0]


def front(folder: Path) -> dict:
    """The metadata of a model card."""
    _, text, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(text)


def test_merged_is_a_pipeline_that_draws_what_the_run_did(capsys, trained, tiny_flux, tmp_path):
    _, place = trained
    for best in ((), ("--best",)):
        out = tmp_path / f"merged{len(best)}"
        assert run(capsys, "export", place, "--format", "merged", "--out", out, *best)[0] == 0
        ours = load_trained(None, place, "cpu", best=bool(best)).model
        torch.testing.assert_close(picture(load_model(out)), picture(ours), atol=1e-4, rtol=0)
    assert (picture(load_model(tmp_path / "merged0")) - picture(load_model(tiny_flux))).abs().max() > 1e-3
    assert not any("lora" in key for file in (out / "transformer").glob("*.safetensors") for key in load_file(file))
    assert front(out)["base_model_relation"] if "base_model" in front(out) else "base_model_relation" not in front(out)


def test_the_folder_is_a_repository_that_diffusers_loads(capsys, trained, tiny_flux, tmp_path):
    kind, place = trained
    assert run(capsys, "export", place, "--out", tmp_path / "d")[0] == 0
    model = load_model(tiny_flux)
    if kind == "lora":
        model.pipe.load_lora_weights(tmp_path / "d")
    else:
        model.transformer.load_state_dict(type(model.transformer).from_pretrained(tmp_path / "d" / "transformer").state_dict())
    ours = load_trained(None, place, "cpu").model
    torch.testing.assert_close(picture(model), picture(ours), atol=1e-4, rtol=0)


def test_the_lora_is_one_file_of_full_strength_for_every_program(capsys, trained, tiny_flux, tmp_path):
    """Without metadata and without alphas, as ComfyUI, InvokeAI and nunchaku read it: W += B A."""
    kind, place = trained
    if kind == "full":
        assert "choose --format merged" in mistake(capsys, "export", place, "--format", "comfyui", "--out", tmp_path / "c")
        assert not (tmp_path / "c").exists()
        return
    for form in ("comfyui", "diffusers"):
        assert run(capsys, "export", place, "--format", form, "--out", tmp_path / form)[0] == 0
    file = tmp_path / "comfyui" / f"{place.name}.safetensors"
    tensors, same = load_file(file), load_file(tmp_path / "diffusers" / FILE)
    assert tensors.keys() == same.keys() and all(torch.equal(tensors[key], same[key]) for key in tensors)
    layers = {key.removesuffix(".lora_A.weight") for key in tensors if "lora_A" in key}
    assert tensors.keys() == {f"{layer}.{end}" for layer in layers for end in ("lora_A.weight", "lora_B.weight")}
    with safe_open(file, "pt") as stored:
        said = json.loads(stored.metadata()["lora_adapter_metadata"])
    assert said["transformer.lora_alpha"] == said["transformer.r"] == 2
    model = load_model(tiny_flux)
    weights = dict(model.transformer.named_parameters())
    for layer in layers:
        down, up = (tensors[f"{layer}.{end}"] for end in ("lora_A.weight", "lora_B.weight"))
        with torch.no_grad():
            weights[layer.removeprefix("transformer.") + ".weight"] += up @ down
    ours = load_trained(None, place, "cpu").model
    torch.testing.assert_close(picture(model), picture(ours), atol=1e-4, rtol=0)


def test_the_card_names_method_rewards_data_and_measures(capsys, trained, tmp_path):
    kind, place = trained
    run(capsys, "export", place, "--best", "--out", tmp_path / "d")
    card = (tmp_path / "d" / "README.md").read_text()
    best = json.loads((place / "best" / "best.json").read_text())
    value = f"{best['value']:.4g} |"
    for part in ("`neighbor`", "brightness (weight 1)", "3 prompts, sha256", value, '"sigma": 0.3', "rate 0.01"):
        assert part in card
    said = front(tmp_path / "d")
    assert said["pipeline_tag"] == "text-to-image" and ("lora" in said["tags"]) == (kind == "lora")
    assert [entry["text"] for entry in said["widget"]] == ["a red circle", "two blue stars", "a green square"]
    pictures = [Image.open(tmp_path / "d" / entry["output"]["url"]) for entry in said["widget"]]
    assert len({file.tobytes() for file in pictures}) == 3


def test_no_file_names_a_place_on_this_machine(capsys, trained, tiny_flux, tmp_path):
    kind, place = trained
    for form in ("diffusers", "merged", *(["comfyui"] if kind == "lora" else [])):
        run(capsys, "export", place, "--format", form, "--out", tmp_path / form)
        for file in filter(Path.is_file, (tmp_path / form).rglob("*")):
            for private in (tiny_flux, place.parent):
                assert str(private).encode() not in file.read_bytes(), file


def test_a_mistake_is_refused_and_changes_nothing(capsys, trained, tmp_path, monkeypatch):
    _, place = trained
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    weights = "lora" if (place / "lora").is_dir() else "transformer"
    for out, remedy in (
        ("there", "is not empty"),
        ("there/x", "is a file"),
        ("there/x/y", "choose another --out"),
        ("circle", "choose another"),
        (place, "is not empty"),
        (place / weights / "new", "is complete"),
    ):
        assert remedy in mistake(capsys, "export", place, "--out", tmp_path / out)
    monkeypatch.chdir(tmp_path / "empty")
    assert "present directory" in mistake(capsys, "export", place, "--out", ".")
    assert "no run in" in mistake(capsys, "export", tmp_path / "there", "--out", tmp_path / "o")
    assert "add --push" in mistake(capsys, "export", place, "--private", "--out", tmp_path / "o")
    assert (tmp_path / "there" / "x").read_text() == "mine" and list(tmp_path.iterdir()).__len__() == 3
