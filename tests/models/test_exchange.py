"""An exported LoRA of the published layouts: every layer in every program, at its full strength."""

import json

import diffusers
import pytest
import torch
from layouts import LAYOUTS, linear_layers
from programs import INVOKEAI, comfyui, comfyui_knows, invokeai, invokeai_base, probes, update
from safetensors.torch import load_file, save_file

from neighbor_grpo.errors import UserError
from neighbor_grpo.models.comfyui import comfyui_layers, is_shared, shared_layers
from neighbor_grpo.models.exchange import FILE, read_adapter, write_layers
from neighbor_grpo.models.family import ATTENTION
from neighbor_grpo.models.hunyuan_video import HunyuanVideo
from neighbor_grpo.models.registry import MODELS

RANK, ALPHA = 2, 5.0
REFUSED = {  # what ComfyUI knows by no name of diffusers
    "FLUX.2": ("time_guidance_embed.", "double_stream_modulation_", "single_stream_modulation."),
    "HunyuanVideo": ("norm_out.linear",),  # the halves of its rows are the other way round
}


def adapted(name: str, every: bool) -> dict[str, tuple[int, int]]:
    """The layers that are adapted by default, or all linear ones that ComfyUI knows."""
    pipeline, layers = LAYOUTS[name][0], linear_layers(name)
    if every:
        no = tuple(prefix for family, prefixes in REFUSED.items() if name.startswith(family) for prefix in prefixes)
        return {layer: size for layer, size in layers.items() if not layer.startswith(no or ("-",))}
    family = object.__new__(MODELS[pipeline])  # without a pipeline: its targets depend on the configuration at most
    family.config = type("Config", (), {"num_single_layers": sum("to_qkv_mlp_proj" in layer for layer in layers)})
    return {layer: size for layer, size in layers.items() if layer.endswith(tuple(family.lora_targets))}


def trained(layers, folder):
    """Write a LoRA as a run does; return what it adds to `probe(inputs)` of each layer."""
    generator, probe, tensors, added = torch.Generator().manual_seed(1), probes(), {}, {}
    for layer, (inputs, outputs) in layers.items():
        down = torch.randn(RANK, inputs, generator=generator) / inputs**0.5
        up = torch.randn(outputs, RANK, generator=generator)
        tensors |= {f"transformer.{layer}.lora_A.weight": down, f"transformer.{layer}.lora_B.weight": up}
        added[layer] = ALPHA / RANK * update((down, up), probe)
    said = {"r": RANK, "lora_alpha": ALPHA, "target_modules": sorted(layers), "rank_pattern": {}, "alpha_pattern": {}}
    metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in said.items()})}
    save_file(tensors, folder / FILE, metadata)
    return added, probe


def exported(name, layers, folder, place, form):
    """Export it; return the matrices of each layer in the file."""
    (folder / form).mkdir()
    family, adapter = MODELS[LAYOUTS[name][0]], read_adapter(folder)
    named = comfyui_layers(family, str(place), adapter.layers) if form == "comfyui" else shared_layers(family, adapter.layers)
    write_layers(folder / form / FILE, named, adapter if form == "diffusers" else None)
    tensors = load_file(folder / form / FILE)
    assert all(key.endswith((".lora_A.weight", ".lora_B.weight")) for key in tensors)
    names = {key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")}
    assert len(tensors) == 2 * len(names)
    return {layer: (tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"]) for layer in names}


def equal(found, added, name, extra=()):
    """Every layer is there, at its strength; `extra`: parts of joined layers that were not trained and get nothing."""
    assert added.keys() <= found.keys() and all(layer.endswith(extra) for layer in found.keys() - added.keys()), name
    wanted = [added[layer] if layer in added else torch.zeros_like(value) for layer, value in found.items()]
    torch.testing.assert_close(torch.cat([*found.values()]), torch.cat(wanted), atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def hunyuan_config(tmp_path_factory):
    place = tmp_path_factory.mktemp("hunyuan")
    (place / "transformer").mkdir()
    (place / "transformer" / "config.json").write_text('{"mlp_ratio": 4.0}')
    return place


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["default", "all"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_program_reads_all_layers_at_full_strength(name, every, tmp_path, hunyuan_config):
    pipeline, layers = LAYOUTS[name][0], adapted(name, every)
    added, probe = trained(layers, tmp_path)
    for form in ("comfyui", "diffusers"):
        pairs = exported(name, layers, tmp_path, hunyuan_config, form)
        if form == "comfyui" or is_shared(MODELS[pipeline], layers):
            equal(comfyui(pipeline, pairs, probe), added, name, ("proj_mlp",) if name == "HunyuanVideo" else ())
        if form == "comfyui" and name == "HunyuanVideo":
            continue
        loaded = getattr(diffusers, pipeline).lora_state_dict(tmp_path / form, return_lora_metadata=True)
        state, said = loaded[0], loaded[-1]
        found = {
            key.removesuffix(".lora_A.weight"): pair for key in state if key.endswith("A.weight") for pair in [own(state, key)]
        }
        equal({layer.removeprefix("transformer."): update(pair, probe) for layer, pair in found.items()}, added, name)
        assert said is None or said["transformer.lora_alpha"] == said["transformer.r"] == RANK
        if (base := INVOKEAI.get(pipeline)) and name != "Wan2.1-I2V-14B" and not every:  # of Wan it has 2.2
            assert invokeai_base(set(load_file(tmp_path / form / FILE))) == {base}
            equal(invokeai(base, pairs, probe), added, name)


def own(state, key):
    return state[key], state[key.replace("lora_A", "lora_B")]


def test_the_published_numbers_of_layers():
    counts = {name: len(adapted(name, False)) for name in ("Wan2.1-T2V-14B", "Wan2.1-I2V-14B", "HunyuanVideo")}
    assert counts == {"Wan2.1-T2V-14B": 40 * 8, "Wan2.1-I2V-14B": 40 * 10, "HunyuanVideo": 20 * 8 + 40 * 3 + 2 * 4}


@pytest.mark.parametrize("name", ["FLUX.2-klein-4B", "HunyuanVideo"])
def test_a_layer_that_comfyui_does_not_know_is_refused(name, tmp_path, hunyuan_config):
    pipeline, layers = LAYOUTS[name][0], linear_layers(name)
    no = tuple(prefix for family, prefixes in REFUSED.items() if name.startswith(family) for prefix in prefixes)
    for layer in (layer for layer in layers if layer.startswith(no)):
        trained({layer: (4, 4)}, tmp_path)
        with pytest.raises(UserError, match=r"--format diffusers.*model\.lora\.targets"):
            comfyui_layers(MODELS[pipeline], str(hunyuan_config), read_adapter(tmp_path).layers)
    if pipeline.startswith("Flux2"):
        assert {layer for layer in layers if not comfyui_knows(pipeline, layer)} == {x for x in layers if x.startswith(no)}


def test_part_of_a_joined_layer_fills_its_rows_alone(tmp_path, hunyuan_config):
    """HunyuanVideo: values of a double block, keys and the MLP of a single one."""
    layers = {layer: size for layer, size in linear_layers("HunyuanVideo").items() if ".0." in layer}
    layers = {
        layer: size for layer, size in layers.items() if layer.endswith(("0.attn.to_v", "single_transformer_blocks.0.proj_mlp"))
    }
    added, probe = trained(layers, tmp_path)
    pairs = exported("HunyuanVideo", layers, tmp_path, hunyuan_config, "comfyui")
    equal(comfyui("HunyuanVideoPipeline", pairs, probe), added, "part", ("to_q", "to_k", "proj_mlp"))


def test_strengths_and_ranks_of_single_layers_count(tmp_path):
    """peft's alpha_pattern, rank_pattern and use_rslora."""
    layers = {"transformer_blocks.0.attn.to_q": (6, 6), "transformer_blocks.0.attn.to_k": (6, 6)}
    added, probe = trained(layers, tmp_path)
    tensors = load_file(tmp_path / FILE)
    for rslora, strength in ((False, 9 / 2), (True, 9 / 2**0.5)):
        said = {"r": 8, "lora_alpha": 4, "target_modules": ["to_q", "to_k"], "use_rslora": rslora, "alpha_pattern": {"to_q": 9}}
        text = json.dumps({f"transformer.{key}": value for key, value in said.items()})
        save_file(tensors, tmp_path / FILE, {"lora_adapter_metadata": text})
        read = read_adapter(tmp_path).layers["transformer_blocks.0.attn.to_q"]
        torch.testing.assert_close(
            update((read.down, read.up), probe), added["transformer_blocks.0.attn.to_q"] * strength / (ALPHA / RANK)
        )


def test_default_targets_are_the_attention_of_every_family():
    assert all(set(ATTENTION) <= set(object.__new__(kind).lora_targets) for kind in {HunyuanVideo, MODELS["FluxPipeline"]})
