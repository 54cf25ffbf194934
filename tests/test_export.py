"""Exports of a run draw what the run saw, in plain diffusers or by the other loader's own arithmetic."""

import json

import pytest
import torch
from runs import settings
from safetensors.torch import load_file
from test_cli import mistake, run

from neighbor_grpo.config import load_config
from neighbor_grpo.models.registry import load_model
from neighbor_grpo.models.sampling import sample
from neighbor_grpo.run.weights import load_trained
from neighbor_grpo.training.trainer import Trainer


@pytest.fixture(scope="module", params=["lora", "full"])
def trained(request, tiny_flux, tmp_path_factory):
    home = tmp_path_factory.mktemp(request.param)
    kind = ("model.lora.alpha=6",) if request.param == "lora" else ("model.lora=null",)
    more = (*kind, "ema=null", "optimizer.lr=1e-2", "watch=[saturation]", "evaluate.every=1", "evaluate.best=saturation")
    return request.param, Trainer(load_config(None, settings(tiny_flux, home, *more))).run()


def picture(model):
    noise = model.noise(1, torch.Generator().manual_seed(0))
    return sample(model, model.encode(["a red circle"]), noise[None], 3, "euler")[0]


def test_merged_is_a_pipeline_that_draws_what_the_run_did(capsys, trained, tiny_flux, tmp_path):
    _, place = trained
    for best in ((), ("--best",)):
        out = tmp_path / f"merged{len(best)}"
        assert run(capsys, "export", place, "--format", "merged", "--out", out, *best)[0] == 0
        ours = load_trained(None, place, "cpu", best=bool(best)).model
        torch.testing.assert_close(picture(load_model(out)), picture(ours), atol=1e-4, rtol=0)
    assert (picture(load_model(tmp_path / "merged0")) - picture(load_model(tiny_flux))).abs().max() > 1e-3
    assert not any("lora" in key for file in (out / "transformer").glob("*.safetensors") for key in load_file(file))


def test_diffusers_loads_the_export(capsys, trained, tiny_flux, tmp_path):
    kind, place = trained
    assert run(capsys, "export", place, "--out", tmp_path / "d")[0] == 0
    model = load_model(tiny_flux)
    if kind == "lora":
        model.pipe.load_lora_weights(tmp_path / "d" / "lora")
    else:
        model.transformer.load_state_dict(type(model.transformer).from_pretrained(tmp_path / "d" / "transformer").state_dict())
    ours = load_trained(None, place, "cpu").model
    torch.testing.assert_close(picture(model), picture(ours), atol=1e-4, rtol=0)


def test_a_comfyui_file_has_every_layer_with_its_alpha(capsys, trained, tiny_flux, tmp_path):
    """Its rule for a FLUX LoRA: W += alpha / rank B A, keys transformer.<layer>.{lora_A.weight, lora_B.weight, alpha}."""
    kind, place = trained
    if kind == "full":
        assert "choose --format merged" in mistake(capsys, "export", place, "--format", "comfyui", "--out", tmp_path / "c")
        assert not (tmp_path / "c").exists()
        return
    assert run(capsys, "export", place, "--format", "comfyui", "--out", tmp_path / "c")[0] == 0
    (file,) = (tmp_path / "c").glob("*.safetensors")
    tensors = load_file(file)
    layers = {key.removesuffix(".lora_A.weight") for key in tensors if "lora_A" in key}
    assert tensors.keys() == {f"{layer}.{end}" for layer in layers for end in ("lora_A.weight", "lora_B.weight", "alpha")}
    model = load_model(tiny_flux)
    weights = dict(model.transformer.named_parameters())
    for layer in layers:
        down, up, alpha = (tensors[f"{layer}.{end}"] for end in ("lora_A.weight", "lora_B.weight", "alpha"))
        with torch.no_grad():
            weights[layer.removeprefix("transformer.") + ".weight"] += float(alpha) / len(down) * up @ down
    ours = load_trained(None, place, "cpu").model
    torch.testing.assert_close(picture(model), picture(ours), atol=1e-4, rtol=0)


def test_the_card_names_method_rewards_data_and_measures(capsys, trained, tmp_path):
    _, place = trained
    run(capsys, "export", place, "--best", "--out", tmp_path / "d")
    card = (tmp_path / "d" / "README.md").read_text()
    best = json.loads((place / "best" / "best.json").read_text())
    value = f"{best['value']:.4g} |"
    for part in ("`neighbor`", "brightness (weight 1)", "3 prompts, sha256", value, '"sigma": 0.3', "rate 0.01"):
        assert part in card
    assert (tmp_path / "d" / "before_after.png").is_file()


def test_a_mistake_is_refused_and_changes_nothing(capsys, trained, tmp_path):
    _, place = trained
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x").write_text("mine")
    assert "is not empty" in mistake(capsys, "export", place, "--out", tmp_path / "there")
    assert "no run in" in mistake(capsys, "export", tmp_path / "there", "--out", tmp_path / "o")
    assert (tmp_path / "there" / "x").read_text() == "mine"
