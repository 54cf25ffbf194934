"""A merged pipeline has the files of its base, with nothing in them changed but what was trained."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from neighbor_grpo.errors import UserError
from neighbor_grpo.models.attach import add_lora
from neighbor_grpo.models.exchange import read_adapter
from neighbor_grpo.models.lora import save_lora
from neighbor_grpo.models.merging import update_by_lora, update_by_weights, write_merged
from neighbor_grpo.models.registry import load_model


@pytest.fixture(scope="module")
def base(tiny_flux, tmp_path_factory):
    """The tiny pipeline in bfloat16 and in shards, with what a download may leave beside them."""
    place = tmp_path_factory.mktemp("base")
    pipe = DiffusionPipeline.from_pretrained(tiny_flux, dtype=torch.bfloat16)
    pipe.save_pretrained(place, max_shard_size="40KB")
    config = json.loads((place / "transformer" / "config.json").read_text())
    (place / "transformer" / "config.json").write_text(json.dumps(config | {"_name_or_path": "/home/me/models/flux"}))
    (place / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"old weights")
    (place / "flux1-dev.safetensors").write_bytes(b"the same in one file")
    return place


@pytest.fixture(scope="module")
def adapter(tiny_flux, tmp_path_factory):
    """A LoRA of strength 3 that changes something."""
    place, model = tmp_path_factory.mktemp("lora"), load_model(tiny_flux)
    add_lora(model.transformer, 2, 6, ["to_q", "to_out.0", "proj_mlp"])
    for name, weight in model.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(0))
    save_lora(model.pipe, model.transformer, place)
    return place


def shards(folder):
    return {file.name: file for file in folder.glob("*.safetensors")}


def merge(base, updates, out):
    out.mkdir(exist_ok=True)
    write_merged(base, None, updates, out)


def test_shards_and_types_stay_and_only_adapted_weights_change(base, adapter, tmp_path):
    layers = read_adapter(adapter).layers
    merge(base, {"transformer": update_by_lora(layers)}, tmp_path / "out")
    old, new = shards(base / "transformer"), shards(tmp_path / "out" / "transformer")
    assert len(old) > 3 and old.keys() == new.keys()
    raw = load_file(adapter / "pytorch_lora_weights.safetensors")
    changed = set()
    for name, file in old.items():
        head = 8 + int.from_bytes(file.read_bytes()[:8], "little")
        assert file.read_bytes()[:head] == new[name].read_bytes()[:head]
        with safe_open(file, "pt") as before, safe_open(new[name], "pt") as after:
            for weight in before.keys():  # noqa: SIM118, not a dict
                wanted, key = before.get_tensor(weight), f"transformer.{weight.removesuffix('.weight')}.lora_"
                if f"{key}A.weight" in raw:
                    wanted = (wanted.float() + 3 * raw[f"{key}B.weight"] @ raw[f"{key}A.weight"]).bfloat16()
                    changed.add(weight.removesuffix(".weight"))
                assert wanted.dtype == torch.bfloat16
                torch.testing.assert_close(after.get_tensor(weight), wanted, rtol=0, atol=0)
    assert changed == layers.keys()
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert "transformer/diffusion_pytorch_model.bin" not in files and "flux1-dev.safetensors" not in files
    for file in files - {f"transformer/{name}" for name in new}:
        copy, original = (folder / file for folder in (tmp_path / "out", base))
        if file.endswith(("config.json", "model_index.json")):
            said = json.loads(original.read_text())
            assert json.loads(copy.read_text()) == {key: value for key, value in said.items() if key != "_name_or_path"}
        else:
            assert copy.read_bytes() == original.read_bytes()
    load_model(tmp_path / "out")


def test_all_weights_replace_the_old_ones_in_their_types(base, tiny_flux, tmp_path):
    trained = load_model(tiny_flux).transformer
    with torch.no_grad():
        for weight in trained.parameters():
            weight += 0.1
    trained.save_pretrained(tmp_path / "trained")
    merge(base, {"transformer": update_by_weights(tmp_path / "trained")}, tmp_path / "out")
    found = load_model(tmp_path / "out", dtype=torch.bfloat16).transformer.state_dict()
    for name, weight in trained.state_dict().items():
        torch.testing.assert_close(found[name], weight.bfloat16(), rtol=0, atol=0)


def test_weights_that_are_not_plain_numbers_or_not_there_are_refused(base, adapter, tiny_flux, tmp_path):
    updates = {"transformer": update_by_lora(read_adapter(adapter).layers)}
    for n, change in enumerate((lambda w: w.to(torch.float8_e4m3fn), lambda w: None)):
        place = tmp_path / str(n)
        DiffusionPipeline.from_pretrained(tiny_flux).save_pretrained(place)
        (file,) = shards(place / "transformer").values()
        weights = {k: change(w) if "attn.to_q.weight" in k else w for k, w in load_file(file).items()}
        save_file({k: w for k, w in weights.items() if w is not None}, file)
        with pytest.raises(UserError, match="--format diffusers"):
            merge(place, updates, tmp_path / f"out{n}")
