"""Another transformer than the pipeline's, and weights in fewer bits: what is loaded, trained, planned and refused."""

import json
import shutil
from functools import partial
from importlib.util import find_spec

import family_wan
import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from mutations import is_one_line
from pipelines import build_flux
from runs import metrics, settings
from safetensors.torch import load_file, save_file

from neighbor_grpo.config import load_config
from neighbor_grpo.errors import UserError
from neighbor_grpo.models.meta_model import meta_model
from neighbor_grpo.models.registry import load_model
from neighbor_grpo.planning.estimate import estimate
from neighbor_grpo.planning.trial import Trial
from neighbor_grpo.training.trainer import Trainer

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
SMALL = "method={name: neighbor, group_size: 2, num_steps: 2, num_train_steps: 1, num_anchors: 1}"
LOADS = pytest.mark.parametrize("load", [load_model, meta_model])
needs_gguf = pytest.mark.skipif(not find_spec("gguf"), reason="needs gguf")


def transformer(seed: int, **changes) -> FluxTransformer2DModel:
    """Of layers whose inputs are whole blocks of 32 numbers, as GGUF counts them."""
    torch.manual_seed(seed)
    shape = {"in_channels": 16, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 4}
    text = {"joint_attention_dim": 40, "pooled_projection_dim": 32, "guidance_embeds": True, "axes_dims_rope": (4, 6, 6)}
    return FluxTransformer2DModel(**shape | text | changes)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A pipeline, and another transformer of its architecture in several forms."""
    place = tmp_path_factory.mktemp("other")
    pipe = build_flux()
    pipe.register_modules(transformer=transformer(1))
    pipe.save_pretrained(place / "pipeline")
    other = transformer(2)
    other.save_pretrained(place / "folder")
    weights = dict(other.state_dict())
    save_file(weights, place / "whole.safetensors")
    save_file(in_fp8(weights), place / "scaled.safetensors")
    pipe.register_modules(transformer=other)
    pipe.save_pretrained(place / "another")
    if find_spec("gguf"):
        write_gguf(weights, place / "whole.gguf")
    return place


def in_fp8(weights):
    """The layers in e4m3, the largest number of each as 448, beside the scale that undoes it."""
    found = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, weight in weights.items():
        if weight.ndim == 2:
            scale = weight.abs().max() / 448
            found[name.replace(".weight", ".scale_weight")] = scale.clone()
            weight = (weight / scale).to(torch.float8_e4m3fn)
        found[name] = weight
    return found


def write_gguf(weights, file):
    import gguf

    writer, kind = gguf.GGUFWriter(str(file), "flux"), gguf.GGMLQuantizationType.Q8_0
    for name, weight in weights.items():
        if weight.ndim == 2 and weight.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(weight.numpy(), kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def velocity(model, time=0.6):
    return model.velocity(model.noise(2, torch.Generator().manual_seed(0)), time, model.encode(["a red circle", "two stars"]))


def true(places, change=lambda weight: weight):
    """The velocity of the other transformer in the pipeline, its layers changed."""
    model, weights = load_model(places / "pipeline"), load_file(places / "whole.safetensors")
    model.transformer.load_state_dict({name: change(w) if w.ndim == 2 else w for name, w in weights.items()})
    return velocity(model)


def rounded(weight):
    """A layer that went through e4m3 and back."""
    scale = weight.abs().max() / 448
    return (weight / scale).to(torch.float8_e4m3fn).float() * scale


@pytest.mark.parametrize("name", ["folder", "another", "whole.safetensors"])
def test_the_transformer_takes_the_place_of_the_pipelines(places, name):
    model = load_model(places / "pipeline", transformer=str(places / name))
    assert torch.equal(velocity(model), true(places)) and model.frozen is None
    assert (velocity(model) - velocity(load_model(places / "pipeline"))).norm() > 0.1
    assert meta_model(places / "pipeline", transformer=str(places / name)).frozen is None


def test_a_file_in_fp8_is_unpacked_by_the_scales_of_its_layers(places):
    model = load_model(places / "pipeline", transformer=str(places / "scaled.safetensors"))
    torch.testing.assert_close(velocity(model), true(places, rounded), atol=1e-6, rtol=1e-5)
    again = load_model(places / "pipeline", transformer=str(places / "scaled.safetensors"), quantize="int8")
    distance = (velocity(again) - velocity(model)).norm() / velocity(model).norm()
    assert 1e-4 < distance < 0.1  # diffusers leaves what it reads from a file as it is, and says nothing


@needs_gguf
def test_a_gguf_file_stays_packed_and_is_what_its_own_library_unpacks(places):
    import gguf

    def unpacked(weight):
        kind = gguf.GGMLQuantizationType.Q8_0
        if weight.shape[1] % 32:
            return weight
        return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind))

    model = load_model(places / "pipeline", transformer=str(places / "whole.gguf"))
    assert model.transformer.transformer_blocks[0].attn.to_q.weight.dtype == torch.uint8
    plain, reference = true(places), true(places, unpacked)
    assert (velocity(model) - reference).norm() < 3e-4 * reference.norm() < 0.1 * (plain - reference).norm()


def test_the_names_of_the_authors_are_read_too(tmp_path):
    """Wan's, as ComfyUI keeps them: with a prefix."""
    names = {
        "attn1": "self_attn",
        "attn2": "cross_attn",
        ".to_out.0.": ".o.",
        ".to_q.": ".q.",
        ".to_k.": ".k.",
        ".to_v.": ".v.",
    }
    names |= {
        "condition_embedder.time_embedder.linear_1": "time_embedding.0",
        ".ffn.net.0.proj": ".ffn.0",
        ".ffn.net.2": ".ffn.2",
    }
    names |= {
        "condition_embedder.time_embedder.linear_2": "time_embedding.2",
        "condition_embedder.time_proj": "time_projection.1",
    }
    names |= {f"condition_embedder.text_embedder.linear_{n}": f"text_embedding.{2 * n - 2}" for n in (1, 2)}
    names |= {"proj_out": "head.head", ".norm2": ".norm3", ".scale_shift_table": ".modulation"}
    pipe = family_wan.build()
    pipe.save_pretrained(tmp_path / "wan")
    weights = {}
    for name, weight in pipe.transformer.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        weights["model.diffusion_model." + ("head.modulation" if name == "scale_shift_table" else name)] = weight
    save_file(weights, tmp_path / "wan.safetensors")
    size = {"height": 32, "width": 32, "num_frames": 5}
    one, other = (load_model(tmp_path / "wan", transformer=t, **size) for t in (None, str(tmp_path / "wan.safetensors")))
    assert torch.equal(velocity(one), velocity(other))
    del weights["model.diffusion_model.head.head.bias"]
    save_file(weights, tmp_path / "wan.safetensors")
    with pytest.raises(UserError, match="weights are missing"):
        load_model(tmp_path / "wan", transformer=str(tmp_path / "wan.safetensors"), **size)


# ---------------------------------------------------------------- weights in fewer bits


@pytest.fixture(scope="module")
def packed(places):
    """A pipeline whose transformer was saved in 8 bits."""
    pytest.importorskip("torchao")
    load_model(places / "pipeline", quantize="int8").pipe.save_pretrained(places / "int8")
    return places / "int8"


def test_a_pipeline_in_8_bits_is_loaded_as_it_is(places, packed):
    model, quantized = load_model(packed), load_model(places / "pipeline", quantize="int8")
    assert torch.equal(velocity(model), velocity(quantized)) and model.frozen.packed == "int8"


def lines(place, tmp_path, *more):
    return load_config(None, settings(place, tmp_path, "iterations=1", "watch=[jpeg_size]", "evaluate.prompts=1", *more))


@pytest.mark.parametrize(
    "form",
    ["packed", pytest.param("scaled.safetensors", marks=pytest.mark.slow), pytest.param("whole.gguf", marks=needs_gguf)],
)
def test_a_lora_is_trained_over_them_and_they_are_not(places, tmp_path, request, form, capsys):
    more = [] if form == "packed" else [f"model.transformer={places / form}"]
    place = request.getfixturevalue("packed") if form == "packed" else places / "pipeline"
    line = metrics(Trainer(lines(place, tmp_path, *more)).run())[1]
    assert line["ratio/noise_floor"] < 1e-4 and line["grad_norm"] > 0
    assert ("gradient_checkpointing=true" in capsys.readouterr().out) == (form != "scaled.safetensors")
    trial = partial(tried, place, *more)
    with pytest.raises(UserError, match=r"train a LoRA over them \(model.lora\)"):
        trial("model.lora=null")
    if form != "scaled.safetensors":
        for key in ("model.quantize=fp8", "model.fp8_rollout=true"):
            with pytest.raises(UserError, match=f"leave out {key.split('=')[0]}"):
                trial(key)
        with pytest.raises(UserError, match=r"leave out scouts\.fp8"):
            estimate(lines(place, tmp_path, *more, "scouts={count: 4, steps: 2, fp8: true}"), "cpu")


def tried(place, *more):
    return Trial(load_config(None, [SMALL, f"model.path={place}", "model.dtype=float32", *more]).model, "cpu")


def test_the_plan_counts_them(places, packed):
    whole = tried(places / "pipeline")
    assert tried(packed).transformer(None) == whole.transformer("int8") < 0.5 * whole.transformer(None)
    scaled = tried(places / "pipeline", f"model.transformer={places / 'scaled.safetensors'}")
    assert scaled.transformer(None) == whole.transformer(None) and scaled.transformer("int8") == whole.transformer("int8")
    if find_spec("gguf"):
        file = places / "whole.gguf"
        assert tried(places / "pipeline", f"model.transformer={file}").transformer(None) == file.stat().st_size


@LOADS
@pytest.mark.parametrize(
    "quantized",
    [{"quant_method": "bitsandbytes", "load_in_8bit": True}, {"quant_method": "quanto"}, {"quant_method": "torchao"}, 3],
)
def test_other_ways_to_store_them_are_refused(places, tmp_path, load, quantized):
    place = shutil.copytree(places / "pipeline", tmp_path / "pipeline")
    for folder, remedy in (("transformer", "model.quantize"), ("text_encoder", "whole text_encoder")):
        config = json.loads((place / folder / "config.json").read_text())
        (place / folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantized}))
        refused(place, remedy, load)
        (place / folder / "config.json").write_text(json.dumps(config))


# ---------------------------------------------------------------- what is refused


def refused(place, remedy, load=load_model, **more):
    with pytest.raises(UserError, match=remedy) as caught:
        load(place, **more)
    assert is_one_line(caught.value), caught.value


@LOADS
def test_a_transformer_that_does_not_fit_is_refused(places, tmp_path, load):
    pipeline, weights = places / "pipeline", load_file(places / "whole.safetensors")
    SD3Transformer2DModel(sample_size=8, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
                          joint_attention_dim=40, caption_projection_dim=16, pooled_projection_dim=32,
                          pos_embed_max_size=8).save_pretrained(tmp_path / "sd3")  # fmt: skip
    transformer(1, joint_attention_dim=48).save_pretrained(tmp_path / "wide")
    files = {
        "less": {name: weight for name, weight in weights.items() if "single_transformer_blocks.1" not in name},
        "more": weights | {"distilled.weight": torch.zeros(2)},
        "shape": weights | {"proj_out.bias": torch.zeros(3)},
        "whole numbers": {name: weight.to(torch.int8) for name, weight in weights.items()},
    }
    for name, held in files.items():
        save_file(held, tmp_path / f"{name}.safetensors")
    (tmp_path / "none.ckpt").write_bytes(b"x")
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "pointer.gguf").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "empty").mkdir()
    for name, remedy in {
        "sd3": "is a SD3Transformer2DModel", "wide": "joint_attention_dim=48", "less.safetensors": "lacks 14 weights",
        "more.safetensors": "distilled.weight", "shape.safetensors": "of another shape, 1", "whole numbers.safetensors": "I8",
        "none.ckpt": "convert it to .safetensors", "pointer.safetensors": "git lfs pull", "pointer.gguf": "git lfs",
        "empty": r"config.json|no \.safetensors", "nowhere.safetensors": "check the path",
    }.items():  # fmt: skip
        refused(pipeline, remedy, load, transformer=str(tmp_path / name))


@LOADS
def test_two_experts_have_no_single_transformer(place, load, places):
    refused(place["experts"], "two experts", load, height=32, width=32, num_frames=5, transformer=str(places / "folder"))
