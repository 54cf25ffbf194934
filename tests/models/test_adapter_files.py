"""Where the file of a LoRA lies, and what is no plain LoRA: every mistake is one line, before a model is there."""

import json
from pathlib import Path

import pytest
import torch
from hub import serving
from huggingface_hub import constants
from mutations import is_one_line
from safetensors.torch import save_file

from neighbor_grpo.errors import UserError
from neighbor_grpo.models.adapter_files import check_adapter, copy_adapter, find_adapter, find_second

LAYER = "transformer.transformer_blocks.0.attn.to_q"
PAIR = {f"{LAYER}.lora_A.weight": torch.ones(2, 4), f"{LAYER}.lora_B.weight": torch.ones(4, 2)}
PEFT = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}


def put(place: Path, *names: str, tensors=PAIR) -> Path:
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, place / name)
    return place


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["pytorch_lora_weights.safetensors"], "pytorch_lora_weights.safetensors"),
        (["my lora #2, v1.5.safetensors"], "my lora #2, v1.5.safetensors"),
        (["checkpoint-100/pytorch_lora_weights.safetensors"], "checkpoint-100/pytorch_lora_weights.safetensors"),
        (["a/b/c.safetensors"], "a/b/c.safetensors"),
        (["lora/x.safetensors", "best/lora/x.safetensors", "checkpoints/000009/weights.safetensors"], "lora/x.safetensors"),
        (["x.safetensors", "transformer_2/x.safetensors"], "x.safetensors"),
    ],
)
def test_a_folder_with_one_file(tmp_path, names, found):
    put(tmp_path, *names)
    assert find_adapter(tmp_path).weights == find_adapter(tmp_path / found).weights == tmp_path / found


def test_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(put(tmp_path, "loras/a.safetensors")))
    assert find_adapter("~/loras").weights == tmp_path / "loras/a.safetensors"


def refused(source) -> str:
    with pytest.raises(UserError) as caught:
        find_adapter(source).settings()
    assert is_one_line(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "names",
    [
        ["a_step00500.safetensors", "b_step01000.safetensors"],
        ["checkpoint-1/pytorch_lora_weights.safetensors", "checkpoint-2/pytorch_lora_weights.safetensors"],
    ],
)
def test_a_folder_with_two_is_refused_with_their_names(tmp_path, names):
    mistake = refused(put(tmp_path, *names))
    assert all(name in mistake for name in names)


def test_a_folder_without_any(tmp_path):
    put(tmp_path, "transformer_2/x.safetensors")
    (tmp_path / "optimizer.pt").write_bytes(b"x")
    assert ".safetensors" in refused(tmp_path)


@pytest.mark.parametrize("source", ["missing.safetensors", "", "a\0b", "x" * 5000, "/nowhere/at/all", "a\nb", "user/repo"])
def test_what_is_nowhere(source):  # the tests run without the hub
    assert "hub" in refused(source).lower() or "path" in refused(source)


def test_a_repository_that_was_downloaded(tmp_path, monkeypatch):
    """The tests run without a network: what is on this machine is found."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--somebody--loras"
    put(place / "snapshots" / "abc", "two.safetensors", "style/adapter_model.safetensors", "style/transformer_2/x.safetensors")
    (place / "snapshots" / "abc" / "style" / "adapter_config.json").write_text(json.dumps(PEFT))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    assert find_adapter("somebody/loras").weights.name == "two.safetensors"
    assert find_adapter("somebody/loras/two.safetensors").config is None
    style = find_adapter("somebody/loras/style")
    assert style.settings() == PEFT and find_second(style).weights.name == "x.safetensors"


def test_a_repository_is_asked_for_one_file_once_and_refused_by_cause(tmp_path, monkeypatch):
    names = ("style/adapter_model.safetensors", "two [v1].safetensors", "big/model.safetensors")
    repo = put(tmp_path / "repo", *names)
    (repo / "style" / "adapter_config.json").write_text(json.dumps(PEFT))
    with serving(monkeypatch, tmp_path / "cache", {"somebody/loras": repo}) as hub:
        assert find_adapter("somebody/loras").weights.name == "two [v1].safetensors"
        assert find_adapter("somebody/loras/style").settings() == PEFT
        assert sorted(hub.asked) == sorted([names[1], names[0], "style/adapter_config.json"])
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert find_adapter("somebody/loras/style").settings() == PEFT and len(hub.asked) == 3
        assert "only a part of it is on this machine" in refused("somebody/loras/big")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        hub.refused["somebody/loras"] = "gated"
        assert "accept its licence" in refused("somebody/loras/big")
        assert "check the name" in refused("somebody/other")


def test_the_hub_is_not_asked_before_the_run():
    check_adapter("somebody/something")
    with pytest.raises(UserError):
        check_adapter("missing.safetensors")


@pytest.mark.parametrize(
    ("data", "remedy"),
    [(b"", "again"), (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs"), (b"PK\x03\x04 zip", "again")],
)
def test_damaged_files(tmp_path, data, remedy):
    (tmp_path / "a.safetensors").write_bytes(data)
    assert remedy in refused(tmp_path)
    whole = (put(tmp_path, "b/a.safetensors") / "b/a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:-1])
    assert "again" in refused(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"use_dora": True}, "DoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
    ],
)
def test_other_adapters_of_peft_are_refused_by_name(tmp_path, change, said):
    put(tmp_path, "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(PEFT | change))
    assert said in refused(tmp_path)


def test_pefts_weights_are_nothing_without_their_strength(tmp_path):
    put(tmp_path, "adapter_model.safetensors")
    assert "adapter_config.json" in refused(tmp_path)
    (tmp_path / "adapter_config.json").write_text("[]")
    assert refused(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(PEFT))
    assert find_adapter(tmp_path).settings() == PEFT


def test_a_copy_is_read_as_the_original(tmp_path):
    put(tmp_path / "a", "lora/adapter_model.safetensors", "lora/transformer_2/my lora.safetensors")
    (tmp_path / "a/lora/adapter_config.json").write_text(json.dumps(PEFT))
    copy_adapter(tmp_path / "a", tmp_path / "b")
    copy = find_adapter(tmp_path / "b")
    assert copy.settings() == PEFT and copy.weights.read_bytes() == find_adapter(tmp_path / "a").weights.read_bytes()
    assert find_adapter(tmp_path / "b" / "transformer_2").weights.name == "my lora.safetensors"
