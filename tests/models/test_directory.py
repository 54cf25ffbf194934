"""Pipeline directories from anywhere: loaded as they are, or refused in one line; no code of theirs is run."""

import json
import os
import shutil
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mutations import PIECES, bytes_of, is_one_line, quick
from safetensors.torch import load_file, save_file

from neighbor_grpo.cli import main
from neighbor_grpo.errors import UserError
from neighbor_grpo.models.directory import safetensors_is_whole
from neighbor_grpo.models.meta_model import meta_model
from neighbor_grpo.models.registry import load_model
from neighbor_grpo.models.tokenizers import contents

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4994582224\n"
LOADS = pytest.mark.parametrize("load", [load_model, meta_model])


@pytest.fixture
def place(tiny_flux, tmp_path):
    return shutil.copytree(tiny_flux, tmp_path / "pipeline")


def edit(file, **changes):
    """Change keys of a JSON file; a value of ... removes one."""
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def refused(load, place, remedy=None):
    with pytest.raises(UserError, match=remedy) as caught:
        load(place)
    assert is_one_line(caught.value), caught.value


# ---------------------------------------------------------------- model_index.json


@LOADS
@pytest.mark.parametrize(
    "component",
    [
        ["this", "s"], ["this", ["s"]], [["this"], "s"], ["antigravity", "x"], ["diffusers.utils", "x"], ["flux", "x"],
        ["os", "system"],
        ["transformers", "AutoModel"], ["transformers", "AutoTokenizer"], ["transformers", "pipeline"],
        ["transformers", "Trainer"],
        ["transformers", "__init__"], ["transformers", "a.b"], ["transformers", ""], ["diffusers", "FluxPipeline"],
        ["diffusers", "DiffusionPipeline"], ["transformers", "CLIPTextModel", 1], ["a"], [], "x", None, 3, {"a": 1},
        [None, "s"],
        [None, None],
    ],
)  # fmt: skip
def test_only_classes_of_components_are_looked_up(place, load, component):
    edit(place / "model_index.json", text_encoder=component)
    before = set(sys.modules)
    refused(load, place)
    assert not {"this", "antigravity"} & (sys.modules.keys() - before)


@LOADS
@pytest.mark.parametrize(
    "changes",
    [
        {"_class_name": ["pipeline", "MyFluxPipeline"]}, {"_class_name": 3}, {"_class_name": None}, {"_class_name": "../x"},
        {"_class_name": ...}, {"_class_name": "DiffusionPipeline"}, {"../x": ["diffusers", "AutoencoderKL"]},
        {"transformer": ...},
        {"other": ["diffusers", "AutoencoderKL"]}, {"other": 3}, {"vae": [None, None]}, {"scheduler": ...},
        {"tokenizer": [None, None]},
    ],
)  # fmt: skip
def test_an_index_must_describe_a_pipeline(place, load, changes):
    edit(place / "model_index.json", **changes)
    refused(load, place)


@LOADS
@pytest.mark.parametrize("name", ["text_encoder/transformers.py", "text_encoder/this.py", "vae/diffusers.py"])
def test_code_in_a_component_is_refused(place, load, name):
    (place / name).write_text("raise SystemExit('run')\n")
    refused(load, place, "remove the file")


@LOADS
def test_code_beside_the_components_is_not_run(place, load):
    for name in ("pipeline.py", "modeling.py"):
        (place / name).write_text("raise SystemExit('run')\n")
    edit(place / "text_encoder" / "config.json", auto_map={"AutoModel": "modeling.Model", "AutoConfig": "modeling.Config"})
    edit(place / "tokenizer" / "tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling.Tokenizer", None]})
    assert load(place).encoders
    edit(place / "text_encoder" / "config.json", attn_implementation="somebody/attention")
    refused(load, place, "code of the hub")


# ---------------------------------------------------------------- files


FILES = [
    "model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
    "tokenizer_2/tokenizer.json", "tokenizer_2/tokenizer_config.json", "transformer/config.json",
    "text_encoder/config.json", "vae/config.json",
]  # fmt: skip
WEIGHTS = ["transformer/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]


@pytest.mark.parametrize("file", [*FILES, *WEIGHTS])
def test_damaged_files_are_refused_in_one_line(place, file):
    data = (place / file).read_bytes()
    for broken in (b"", POINTER, data[: len(data) // 2], b"[]", b"{}", b'{"a": ' * 3000):
        (place / file).write_bytes(broken)
        for load in (load_model, meta_model) if file in FILES else (load_model,):
            refused(load, place)
    (place / file).unlink()
    refused(load_model, place)
    (place / file).mkdir()
    refused(load_model, place)


@LOADS
@pytest.mark.parametrize("name", ["transformer", "text_encoder_2", "tokenizer_2", "scheduler"])
def test_a_component_that_is_missing_is_refused(place, load, name):
    shutil.rmtree(place / name)
    refused(load, place, f"'{name}' .*is missing")
    (place / name).mkdir()
    refused(load, place)


@pytest.mark.parametrize("file", WEIGHTS)
def test_weights_that_are_not_in_the_file_are_not_drawn_at_random(place, file):
    weights = load_file(place / file)
    name = next(name for name in sorted(weights) if name.endswith("weight"))
    save_file({key: weight for key, weight in weights.items() if key != name}, place / file, {"format": "pt"})
    refused(load_model, place, "lacks the weights")


def rename(place, old, new):
    for file in sorted(place.rglob("*")):
        if file.is_file() and old in file.name:
            file.rename(file.with_name(file.name.replace(old, new)))


def test_a_variant_names_the_files_of_weights(place, tiny_flux):
    rename(place, ".safetensors", ".fp16.safetensors")
    one, other = load_model(place, variant="fp16"), load_model(tiny_flux)
    assert all(torch.equal(a, b) for a, b in zip(one.transformer.parameters(), other.transformer.parameters(), strict=True))
    refused(load_model, place, "variant=null: set it to fp16")
    with pytest.raises(UserError, match="set it to fp16"):
        load_model(place, variant="bf16")
    rename(place / "vae", ".fp16", "")
    with pytest.raises(UserError, match=r"vae has no weights .*variant=fp16: set it to null"):
        load_model(place, variant="fp16")


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_weights_in_parts_need_their_index_and_every_part(tiny_flux, place, variant):
    pipe = load_model(tiny_flux).pipe
    for name in ("transformer", "text_encoder"):
        shutil.rmtree(place / name)
        getattr(pipe, name).save_pretrained(place / name, max_shard_size="20KB", variant=variant)
    for name in ("text_encoder_2", "vae"):
        rename(place / name, ".safetensors", f".{variant}.safetensors" if variant else ".safetensors")
    assert load_model(place, variant=variant).encoders
    parts = sorted((place / "transformer").glob("*-of-*.safetensors"))
    parts[1].rename(place / "aside")
    with pytest.raises(UserError, match=f"{parts[1].name} is missing"):
        load_model(place, variant=variant)
    (place / "aside").rename(parts[1])
    next((place / "text_encoder").glob("*.index*.json")).unlink()
    with pytest.raises(UserError, match="no index"):
        load_model(place, variant=variant)


def test_weights_in_pickles_are_refused_with_the_way_round(place):
    rename(place / "text_encoder_2", "model.safetensors", "pytorch_model.bin")
    refused(load_model, place, r"T5EncoderModel.from_pretrained\('.*', subfolder='text_encoder_2', use_safetensors=False\)")


def test_a_file_in_the_place_of_a_pipeline(place):
    refused(load_model, place / "transformer" / "config.json", "model.transformer")


def test_an_encoder_of_another_architecture_is_refused(place):
    edit(place / "model_index.json", text_encoder=["transformers", "T5EncoderModel"])
    refused(load_model, place)


@LOADS
@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("vae", {"scaling_factor": "0.36"}), ("vae", {"block_out_channels": "x"}), ("vae", {"block_out_channels": []}),
        ("transformer", {"axes_dims_rope": [1]}), ("transformer", {"in_channels": 15}), ("transformer",
        {"num_layers": None}),
        ("transformer", {"guidance_embeds": "no"}), ("text_encoder_2", {"d_model": "x"}), ("text_encoder",
        {"hidden_size": None}),
    ],
)  # fmt: skip
def test_settings_of_components_that_make_no_sense(place, load, file, changes):
    edit(place / file / "config.json", **changes)
    if load is load_model and "axes_dims_rope" in changes:
        return  # no weights depend on it: it is found by the plan, which a run makes first
    refused(load, place)


@LOADS
def test_settings_of_tokenizers_that_make_no_sense(place, load):
    for value in ("x", -1, 0, 10**30):
        edit(place / "tokenizer" / "tokenizer_config.json", model_max_length=value)
        refused(load, place)


@LOADS
def test_a_tokenizer_that_makes_all_prompts_one_is_refused(place, load):
    (place / "tokenizer_2" / "tokenizer.json").unlink()
    refused(load, place, "'tokenizer_2' gives every prompt the same tokens")


def test_what_a_tokenizer_says_is_part_of_the_caches_key(place):
    model = load_model(place)
    before = contents(model.pipe.tokenizer)
    model.encode(["a red circle"])
    assert contents(model.pipe.tokenizer) == before  # what was asked of it does not count
    edit(place / "tokenizer" / "tokenizer_config.json", model_max_length=8)
    assert contents(load_model(place).pipe.tokenizer) != before


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_files_without_permission(place):
    (place / "vae" / "config.json").chmod(0)
    refused(load_model, place, "permissions")


@quick(20)
@given(data=st.data())
def mutated(origin, place, data):
    """Load a directory of which one small file is mutated."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(origin, place)
    file = place / data.draw(st.sampled_from(FILES))
    pieces = [*PIECES, b'"this"', b"[null, null]", b"9999", b"-1", b"0", b'"x"', b"[]"]
    file.write_bytes(data.draw(bytes_of([file.read_bytes()], pieces)))
    try:
        meta_model(place)
    except UserError as mistake:
        assert is_one_line(mistake), mistake


def test_mutated_directories(tiny_flux, tmp_path):
    mutated(tiny_flux, tmp_path / "pipeline")


@quick(100)
@given(data=st.data())
def cut(file, original, data):
    """Cut a file of weights anywhere, or lengthen it."""
    end = data.draw(st.integers(0, len(original) - 1))
    file.write_bytes(data.draw(st.sampled_from([original[:end], original + b"\0" * (end + 1)])))
    assert not safetensors_is_whole(file)


def test_weights_that_were_cut_off_are_found(tiny_flux, tmp_path):
    original = (tiny_flux / WEIGHTS[1]).read_bytes()
    (tmp_path / "a.safetensors").write_bytes(original)
    assert safetensors_is_whole(tmp_path / "a.safetensors")
    cut(tmp_path / "a.safetensors", original)


def test_commands_print_one_line(place, capsys):
    edit(place / "model_index.json", text_encoder=["this", "s"])
    for command in (["plan"], ["train"]):
        assert main([*command, f"model.path={place}"]) == 2
        out, err = capsys.readouterr()
        assert err.count("\n") == 1 and "diffusers or transformers" in err and not out
