"""LoRAs of every layout: the same update, whatever the file calls its layers, matrices and alpha."""

import json
import re

import pytest
import torch
from diffusers import Flux2Pipeline, FluxPipeline, WanPipeline
from safetensors.torch import save_file
from transformers_of_layouts import BUILD, random_lora, same, updates

from neighbor_grpo.errors import UserError
from neighbor_grpo.models.adapter_files import find_adapter
from neighbor_grpo.models.adapters import read_lora
from neighbor_grpo.models.attach import attach, lora_layers
from neighbor_grpo.models.layouts import flat, linear_layers, places, published

LAYERS = {
    "flux": ["transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.to_out.0", "single_transformer_blocks.1.proj_mlp"],
    "sd3": ["transformer_blocks.0.attn2.to_k", "transformer_blocks.1.attn.to_out.0", "transformer_blocks.0.ff.net.0.proj"],
}


@pytest.fixture(scope="module")
def built():
    """Transformers by name, each built when a test first needs it."""

    class Built(dict):
        def __missing__(self, name):
            torch.manual_seed(0)
            self[name] = BUILD[name]()
            return self[name]

    return Built()


def dotted(prefix, down, up):
    """Spell the matrices with dots."""
    return lambda name, pair: {f"{prefix}{name}{down}": pair.down, f"{prefix}{name}{up}": pair.up}


def kohya(prefix):
    """Spell the layer with underscores, and give alpha = 2 with B to match."""
    return lambda name, pair: {
        f"{prefix}{flat(name)}.lora_down.weight": pair.down,
        f"{prefix}{flat(name)}.lora_up.weight": pair.up * pair.rank / 2,
        f"{prefix}{flat(name)}.alpha": torch.tensor(2.0),
    }


def processor(name, pair):
    """Spell a layer of an attention as the first diffusers did."""
    attention, _, layer = name.removesuffix(".0").rpartition(".")
    return {
        f"transformer.{attention}.processor.{layer}_lora.down.weight": pair.down,
        f"transformer.{attention}.processor.{layer}_lora.up.weight": pair.up,
    }


AB, DOWN_UP = (".lora_A.weight", ".lora_B.weight"), (".lora_down.weight", ".lora_up.weight")
SPELLINGS = {
    **{
        f"{prefix}*": dotted(prefix, *AB)
        for prefix in ("transformer.", "", "diffusion_model.", "base_model.model.", "transformer.base_model.model.", "model.")
    },
    "lora_up": dotted("diffusion_model.", *DOWN_UP),
    "lora.up": dotted("transformer.", ".lora.down.weight", ".lora.up.weight"),
    "lora_linear_layer": dotted("", ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    "peft's name": dotted("", ".lora_A.default.weight", ".lora_B.default.weight"),
    "lora_unet_": kohya("lora_unet_"),
    "lora_transformer_": kohya("lora_transformer_"),
    "lycoris_": kohya("lycoris_"),
    "processor": processor,
}


def written(tmp_path, tensors, metadata=None, name="any name #1.safetensors"):
    save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, tmp_path / name, metadata)
    return find_adapter(tmp_path)


def spelled(lora, spelling):
    return {key: tensor for name, pair in lora.items() for key, tensor in spelling(name, pair).items()}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("model", LAYERS)
def test_every_spelling_is_the_same_update(built, tmp_path, model, spelling):
    names = [name for name in LAYERS[model] if "attn" in name or spelling != "processor"]
    lora = random_lora(built[model], names, ranks=(3, 2))
    assert same(read_lora(written(tmp_path, spelled(lora, SPELLINGS[spelling])), built[model]), lora)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_files_in_16_bits_are_read(built, tmp_path, dtype):
    lora = random_lora(built["flux"], LAYERS["flux"])
    tensors = {key: tensor.to(dtype) for key, tensor in spelled(lora, SPELLINGS["transformer.*"]).items()}
    read = read_lora(written(tmp_path, tensors), built["flux"])
    assert {pair.down.dtype for pair in read.values()} == {dtype} and same(read, lora, 0.1)


def test_alpha_and_rank_by_layer_come_from_pefts_settings(built, tmp_path):
    """Scale = alpha / r, or alpha / sqrt(r), each of the layer's own."""
    lora = random_lora(built["sd3"], LAYERS["sd3"], ranks=(4, 9))
    tensors = spelled(lora, SPELLINGS["base_model.model.*"])
    settings = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 6,
        "rank_pattern": {"attn.to_out.0": 9},
        "alpha_pattern": {"attn2.to_k": 1},
    }
    scales = dict(zip(lora, (1 / 4, 6 / 9, 6 / 4), strict=True))
    for rs in (False, True):
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"use_rslora": rs}))
        read = updates(read_lora(written(tmp_path, tensors, name="adapter_model.safetensors"), built["sd3"]))
        for name, pair in lora.items():
            scale = scales[name] * (pair.rank**0.5 if rs else 1)
            torch.testing.assert_close(read[name], scale * pair.up @ pair.down)


def test_alpha_comes_from_diffusers_metadata(built, tmp_path):
    lora = random_lora(built["flux"], LAYERS["flux"])
    metadata = {"lora_adapter_metadata": json.dumps({"transformer.r": 3, "transformer.lora_alpha": 6.0, "text_encoder.r": 8})}
    read = read_lora(written(tmp_path, spelled(lora, SPELLINGS["transformer.*"]), metadata), built["flux"])
    assert {pair.alpha for pair in read.values()} == {6.0}


# ---------------------------------------------------------------- the published names


OTHERS = {  # of several names of one layer, those that other models or other programs have
    "flux": r"_lora|fc[12]$|linear$|_blocks\.\d+\.(qkv|proj)$|mlp\.\d$(?<!_mlp\.\d)",
    "flux2": "_lora",
}


def names_of(model, transformer, without="^$"):
    """Return one published name for each group of layers, and what it stands for."""
    without = f"{OTHERS.get(model, '^$')}|{without}"
    return {name: place for name, place in published(transformer) if not re.search(without, name)}


def in_published_names(transformer, names, suffixes=AB, prefix="diffusion_model."):
    """Return random matrices under published names; where a name stands for several layers, their rows together."""
    layers, generator, tensors = linear_layers(transformer), torch.Generator().manual_seed(2), {}
    for name, place in names.items():
        rows = sum(layers[layer].out_features for layer in place.layers)
        tensors[f"{prefix}{name}{suffixes[0]}"] = torch.randn(3, layers[place.layers[0]].in_features, generator=generator)
        tensors[f"{prefix}{name}{suffixes[1]}"] = torch.randn(rows, 3, generator=generator)
    return tensors


@pytest.mark.parametrize(
    ("model", "pipeline", "without"),
    [
        ("wan", WanPipeline, "^$"),
        # diffusers leaves scale and shift of the last norm as they are, though its own conversion of the model swaps them
        ("flux2", Flux2Pipeline, "adaLN"),
        # diffusers takes the fused layer to be of FLUX.1's size, and gives embeddings no prefix
        ("flux", FluxPipeline, r"linear1|_in\b|final_layer"),
    ],
)
def test_published_names_are_read_as_by_diffusers(built, tmp_path, model, pipeline, without):
    """Its converters are an independent table of the same names."""
    suffixes = DOWN_UP if model == "flux" else AB
    tensors = in_published_names(built[model], names_of(model, built[model], without), suffixes)
    file = written(tmp_path, tensors)
    theirs = pipeline.lora_state_dict(str(file.weights))
    ours = updates(read_lora(file, built[model]))
    products = {
        (name.removeprefix("transformer.").removesuffix(AB[0])): theirs[name.replace(*AB)] @ tensor
        for name, tensor in theirs.items()
        if name.endswith(AB[0])
    }
    assert ours.keys() == products.keys() and len(ours) > 20
    for name, product in products.items():
        torch.testing.assert_close(ours[name], product, msg=name)


@pytest.mark.parametrize("model", ["flux", "sd3"])
def test_rows_of_a_fused_layer_go_to_its_parts(built, tmp_path, model):
    """All rows of a name are those of its layers, one below the other; of scale and shift, the other way round."""
    names = names_of(model, built[model])
    tensors = in_published_names(built[model], names)
    read = updates(read_lora(written(tmp_path, tensors), built[model]))
    for name, place in names.items():
        whole = tensors[f"diffusion_model.{name}{AB[1]}"] @ tensors[f"diffusion_model.{name}{AB[0]}"]
        halves = "adaLN" in name and len(whole) == 2 * whole.shape[1]
        expected = torch.cat(whole.chunk(2)[::-1]) if halves else whole
        torch.testing.assert_close(torch.cat([read[layer] for layer in place.layers]), expected, msg=name)
    assert sum(len(place.layers) for place in names.values()) == len(read)


@pytest.mark.parametrize("model", BUILD)
def test_every_layer_has_one_name_of_each_kind(built, model):
    layers = linear_layers(built[model])
    assert len({flat(layer) for layer in layers}) == len(layers)
    known = places(built[model])
    assert all(known[flat(layer)].layers == (layer,) for layer in layers)
    covered = {layer for place in names_of(model, built[model]).values() for layer in place.layers}
    assert {layer for layer in layers if "blocks." in layer} <= covered


@pytest.mark.parametrize("model", BUILD)
def test_a_lora_is_attached_to_its_layers_alone(model):
    """Also to those whose whole name is the end of another one, such as FLUX.1's proj_out."""
    layers = list(linear_layers(BUILD[model]()))
    for names in (layers, layers[-1:], layers[::5], [name for name in layers if "." not in name]):
        transformer = BUILD[model]()
        attach(transformer, random_lora(transformer, names, ranks=(3, 2)), "some")
        assert lora_layers(transformer).keys() == set(names)


def test_xlabs(built, tmp_path):
    """Its names of the two attentions of a block."""
    names = {name: place for name, place in published(built["flux"]) if "_lora" in name or name.endswith((".qkv", ".proj"))}
    names = {name: place for name, place in names.items() if "attn" not in name}
    tensors = {}
    for key, tensor in in_published_names(built["flux"], names, (".down.weight", ".up.weight"), "").items():
        block, number, name, end = key.split(".", 3)
        tensors[f"{block}.{number}.processor.{name}{'' if 'lora' in name else '_lora'}.{end}"] = tensor
    assert (
        "double_blocks.0.processor.qkv_lora2.down.weight" in tensors
        and "single_blocks.1.processor.qkv_lora.up.weight" in tensors
    )
    read = read_lora(written(tmp_path, tensors), built["flux"])
    assert read.keys() == {layer for place in names.values() for layer in place.layers}


def test_on_the_meta_device_only_shapes_are_read(built, tmp_path):
    lora = random_lora(built["flux"], LAYERS["flux"], ranks=(3, 2))
    file = written(tmp_path, spelled(lora, SPELLINGS["lora_unet_"]))
    with torch.device("meta"):
        read = read_lora(file, BUILD["flux"]())
    assert {name: (pair.rank, pair.alpha) for name, pair in read.items()} == {
        name: (pair.rank, 2.0) for name, pair in lora.items()
    }
    assert all(pair.down.is_meta and pair.up.is_meta for pair in read.values())


def test_two_spellings_of_one_layer_are_refused(built, tmp_path):
    lora = random_lora(built["flux"], LAYERS["flux"][:1])
    with pytest.raises(UserError, match="two"):
        tensors = spelled(lora, SPELLINGS["transformer.*"]) | spelled(lora, SPELLINGS["lora_unet_"])
        read_lora(written(tmp_path, tensors), built["flux"])
