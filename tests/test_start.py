"""Runs that start from LoRAs: trained on, or frozen in the base; and what the reference is then."""

import json
import shutil

import pytest
import torch
from diffusers import FluxPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from runs import metrics, settings
from safetensors.torch import load_file, save_file

from neighbor_grpo.config import load_config
from neighbor_grpo.errors import UserError
from neighbor_grpo.models.attach import lora_off
from neighbor_grpo.models.lora import load_lora, make_trainable, save_lora
from neighbor_grpo.models.registry import load_model
from neighbor_grpo.models.settings import BaseLora, Lora
from neighbor_grpo.planning.estimate import estimate
from neighbor_grpo.run.export import export
from neighbor_grpo.run.export_request import check_request
from neighbor_grpo.run.files import read_config
from neighbor_grpo.run.weights import load_trained
from neighbor_grpo.training.trainer import Trainer

TARGETS = ["attn.to_q", "attn.to_out.0"]


@pytest.fixture(scope="module")
def loras(tiny_flux, tmp_path_factory):
    """A folder as peft's save_pretrained and Flow-GRPO write it (alpha = 2 r), and a file with alphas as kohya's."""
    place = tmp_path_factory.mktemp("loras")
    transformer = FluxPipeline.from_pretrained(tiny_flux).transformer
    torch.manual_seed(5)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, init_lora_weights=False)
    transformer.add_adapter(config)
    tensors = {f"base_model.model.{name}": weight for name, weight in get_peft_model_state_dict(transformer).items()}
    (place / "peft").mkdir()
    save_file(
        {name: tensor.detach().contiguous() for name, tensor in tensors.items()}, place / "peft/adapter_model.safetensors"
    )
    (place / "peft/adapter_config.json").write_text(json.dumps(config.to_dict() | {"target_modules": TARGETS}, default=str))
    layer = "lora_unet_transformer_blocks_0_attn_to_k"
    kohya = {"lora_down.weight": torch.randn(2, 48), "lora_up.weight": torch.randn(48, 2), "alpha": torch.tensor(1.0)}
    save_file({f"{layer}.{name}": tensor for name, tensor in kohya.items()}, place / "style.safetensors")
    return place


def diffusers(tiny_flux, loras, old: float = 1.0, style: float = 0.0):
    """Return a pipeline of diffusers with the weights of the base and so much of both LoRAs, added by hand."""
    pipe = FluxPipeline.from_pretrained(tiny_flux)
    layers = dict(pipe.transformer.named_modules())
    peft, kohya = load_file(loras / "peft/adapter_model.safetensors"), load_file(loras / "style.safetensors")
    with torch.no_grad():
        for name, down in peft.items():
            if "lora_A" in name:
                weight = layers[name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")].weight
                weight += old * 2 * peft[name.replace("lora_A", "lora_B")] @ down
        stem = "lora_unet_transformer_blocks_0_attn_to_k.lora_"
        weight = pipe.transformer.transformer_blocks[0].attn.to_k.weight
        weight += style * 0.5 * kohya[f"{stem}up.weight"] @ kohya[f"{stem}down.weight"]
    return pipe


def velocity(model, transformer=None):
    """Return the velocity of fixed latents, by another transformer if one is given."""
    x, cond = model.noise(2, torch.Generator().manual_seed(0)), model.encode(["a red circle", "two blue stars"])
    kept, model.transformer = model.transformer, transformer or model.transformer
    with torch.no_grad():
        v = model.velocity(x, 0.5, cond)
    model.transformer = kept
    return v


@pytest.mark.parametrize("reference", ["start", "base"])
def test_the_start_and_its_reference(tiny_flux, loras, reference):
    """Before training: base + LoRAs.  The reference: the same, or without the one that is trained on."""
    model = load_model(tiny_flux, base_loras=[{"path": str(loras / "style.safetensors"), "strength": 0.5}])
    make_trainable(model, Lora(path=str(loras / "peft"), reference=reference))
    trained = {name: w for name, w in model.transformer.named_parameters() if w.requires_grad}
    assert {w.dtype for w in trained.values()} == {torch.float32}
    assert {name.removesuffix(".default.weight") for name in trained} == {
        name.removeprefix("base_model.model.").removesuffix(".weight")
        for name in load_file(loras / "peft/adapter_model.safetensors")
    }
    start = diffusers(tiny_flux, loras, 1.0, 0.5).transformer
    close = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(velocity(model), velocity(model, start), **close)
    with torch.no_grad():
        for weight in trained.values():
            weight.mul_(1.5)
    other = start if reference == "start" else diffusers(tiny_flux, loras, 0.0, 0.5).transformer
    with lora_off(model.transformer):
        torch.testing.assert_close(velocity(model), velocity(model, other), **close)
    moved = diffusers(tiny_flux, loras, 2.25, 0.5).transformer
    torch.testing.assert_close(velocity(model), velocity(model, moved), **close)


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"rank": 8}, "rank"),
        ({"alpha": 4.0}, "alpha"),
        ({"targets": ["to_q"]}, "targets"),
        ({}, None),
        ({"rank": 4, "alpha": 8.0, "targets": ["attn.to_q", "attn.to_out.0"]}, None),
    ],
)
def test_settings_that_differ_from_the_file_are_refused(tiny_flux, loras, given, key):
    model = load_model(tiny_flux)
    if key is None:
        make_trainable(model, Lora(path=str(loras / "peft"), **given))
        return
    with pytest.raises(UserError, match=f"model.lora.{key} .*leave it out"):
        make_trainable(model, Lora(path=str(loras / "peft"), **given))


def test_loras_lie_on_a_quantized_base(tiny_flux, loras):
    """They move the velocity as they do without quantization, up to its rounding."""
    pytest.importorskip("torchao")
    plain = load_model(tiny_flux, quantize="int8")
    model = load_model(tiny_flux, quantize="int8", base_loras=[str(loras / "style.safetensors")])
    make_trainable(model, Lora(path=str(loras / "peft")))
    base, both = (diffusers(tiny_flux, loras, part, part).transformer for part in (0.0, 1.0))
    moved, expected = velocity(model) - velocity(plain), velocity(plain, both) - velocity(plain, base)
    assert (moved - expected).norm() < 0.1 * expected.norm()


def test_ranks_and_alphas_by_layer_are_kept_in_what_is_saved(tiny_flux, tmp_path):
    """Our own reader and diffusers' read the same from it."""
    torch.manual_seed(2)
    pairs = {}
    for layer, rank, alpha in (("attn.to_q", 2, 1.0), ("attn.to_k", 3, 6.0), ("attn.to_v", 3, 1.5)):
        name = f"transformer.transformer_blocks.0.{layer}"
        pairs |= {f"{name}.lora_A.weight": torch.randn(rank, 48), f"{name}.lora_B.weight": torch.randn(48, rank)}
        pairs |= {f"{name}.alpha": torch.tensor(alpha)}
    save_file(pairs, tmp_path / "mixed.safetensors")
    model, again = load_model(tiny_flux), load_model(tiny_flux)
    make_trainable(model, Lora(path=str(tmp_path / "mixed.safetensors")))
    save_lora(model.pipe, model.transformer, tmp_path / "saved")
    load_lora(again.transformer, tmp_path / "saved")
    pipe = FluxPipeline.from_pretrained(tiny_flux)
    weights = {name: weight.clone() for name, weight in pipe.transformer.state_dict().items()}
    for layer, scale in (("to_q", 1 / 2), ("to_k", 6 / 3), ("to_v", 1.5 / 3)):
        name = f"transformer_blocks.0.attn.{layer}"
        weights[f"{name}.weight"] += (
            scale * pairs[f"transformer.{name}.lora_B.weight"] @ pairs[f"transformer.{name}.lora_A.weight"]
        )
    pipe.transformer.load_state_dict(weights)
    expected = velocity(model, pipe.transformer)
    theirs = FluxPipeline.from_pretrained(tiny_flux)
    theirs.load_lora_weights(tmp_path / "saved")
    for found in (velocity(model), velocity(again), velocity(model, theirs.transformer)):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_rank_and_alpha_of_a_preset_are_not_given(tmp_path):
    lora = load_config(None, ["model.lora.path=x"], ["sd35_medium"]).model.lora
    assert lora and (lora.rank, lora.alpha, lora.path) == (None, None, "x")
    lora = load_config(None, ["model.lora.rank=8", "model.lora.path=x"], ["sd35_medium"]).model.lora
    assert lora and (lora.rank, lora.alpha) == (8, None)
    with pytest.raises(UserError, match="rank"):
        load_config(None, ["model.lora.rank=null"])
    with pytest.raises(UserError, match="set model"):
        load_config(None, ["model.base_loras=[x]", "model.lora=null"])
    with pytest.raises(UserError, match="strength"):
        load_config(None, ["model.base_loras=[{path: x, strength: 0}]"])
    for text in ("x", "[x]", "{path: x}"):
        assert load_config(None, [f"model.base_loras={text}"]).model.base_loras == [BaseLora(path="x", strength=1.0)]


def test_the_estimate_counts_the_lora_of_the_file(tiny_flux, loras, tmp_path):
    def estimated(*changes):
        return estimate(load_config(None, settings(tiny_flux, tmp_path, *changes)), "cpu")

    path, base = loras / "peft", loras / "style.safetensors"
    plain = estimated()
    started = estimated(f"model.lora={{path: {path}, reference: base, rank: null, alpha: null}}", f"model.base_loras=[{base}]")
    held = sum(tensor.numel() for tensor in load_file(path / "adapter_model.safetensors").values())
    assert started.trained == held != plain.trained
    assert started.parameters - started.trained == plain.parameters - plain.trained + 2 * 2 * 48
    assert started.resident["transformer"] == plain.resident["transformer"] + 4 * 2 * 2 * 48
    assert started.resident["LoRA"] == 4 * held


def test_a_wrong_lora_is_told_before_weights_are_read(tiny_flux, loras, tmp_path):
    save_file({"unet.a.lora_A.weight": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    pipeline = shutil.copytree(tiny_flux, tmp_path / "pipeline")
    for file in pipeline.glob("*/*.safetensors"):
        file.chmod(0o000)
    with pytest.raises(UserError, match="1 of 1 keys"):
        load_model(tiny_flux, base_loras=[str(tmp_path / "a.safetensors")])


@pytest.mark.slow
def test_a_run_from_loras_is_resumed_and_exported_without_their_files(tiny_flux, loras, tmp_path):
    """Base + old + new in diffusers, of the files that are there, is what the run has drawn with."""
    aside = shutil.copytree(loras, tmp_path / "aside")
    changes = [
        f"model.lora.path={aside / 'peft'}",
        "model.lora.rank=null",
        "model.lora.alpha=null",
        f"model.base_loras=[{{path: {aside / 'style.safetensors'}, strength: 0.5}}]",
        "iterations=2",
        "ema=null",
        "method={name: flow_grpo, kl: 0.1, group_size: 4, num_steps: 3}",
    ]
    run = Trainer(load_config(None, settings(tiny_flux, tmp_path, *changes))).run()
    shutil.rmtree(aside)
    lines = metrics(run)
    assert lines[1]["first/kl"] == 0 if "first/kl" in lines[1] else True
    run = Trainer.resume(run, ["iterations=3"]).run()
    assert read_config(run).model.lora.path == str(aside / "peft")
    with pytest.raises(UserError, match="path"):
        Trainer.resume(run, ["iterations=4", f"model.lora.path={loras / 'peft'}"])
    model = load_trained(None, run, "cpu").model
    pipe = diffusers(tiny_flux, loras, 0.0, 0.5)
    pipe.load_lora_weights(run / "lora")
    ours = velocity(model)
    torch.testing.assert_close(ours, velocity(model, pipe.transformer), atol=1e-5, rtol=0)
    assert not torch.allclose(ours, velocity(model, diffusers(tiny_flux, loras, 1.0, 0.5).transformer), atol=1e-4)
    for form in ("diffusers", "merged"):  # with the frozen LoRA in it, so that the model itself is enough
        out = export(check_request(run, form, tmp_path / form))
        plain = FluxPipeline.from_pretrained(out if form == "merged" else tiny_flux)
        if form == "diffusers":
            plain.load_lora_weights(out)
        torch.testing.assert_close(ours, velocity(model, plain.transformer), atol=1e-5, rtol=0)
        card = (out / "README.md").read_text()
        assert "from peft on, above style.safetensors (strength 0.5)" in card and str(tmp_path) not in card
    (next((run / "adapters").glob("start/*.safetensors"))).write_bytes(b"")
    with pytest.raises(UserError, match="damaged"):
        Trainer.resume(run, ["iterations=4"])
