"""Models of the hub: downloaded once, read offline afterwards, and refused by cause in one line."""

import errno
import os
import shutil

import pytest
import torch
from hub import serving
from huggingface_hub import constants
from mutations import is_one_line

from neighbor_grpo.cli import main
from neighbor_grpo.errors import UserError
from neighbor_grpo.models.meta_model import meta_model
from neighbor_grpo.models.registry import load_model

REPO = "somebody/flux"


@pytest.fixture
def hub(tiny_flux, tmp_path, monkeypatch):
    with serving(monkeypatch, tmp_path / "cache", {REPO: shutil.copytree(tiny_flux, tmp_path / "repo")}) as hub:
        yield hub


def refused(remedy, load=meta_model, name=REPO, **settings):
    with pytest.raises(UserError, match=remedy) as caught:
        load(name, **settings)
    assert is_one_line(caught.value), caught.value
    return str(caught.value)


def velocity(model):
    return model.velocity(model.noise(1, torch.Generator().manual_seed(0)), 0.5, model.encode(["a red circle"]))


def test_a_plan_downloads_no_weights_and_what_was_downloaded_works_offline(hub, tiny_flux, monkeypatch):
    assert meta_model(REPO).encoders
    assert not [file for file in hub.asked if file.endswith(".safetensors")]
    refused("'somebody/flux': only a part of it is on this machine.*cannot be reached", offline(monkeypatch, load_model))
    online = load_model(REPO)
    assert len([file for file in hub.asked if file.endswith(".safetensors")]) == 4 and len(hub.asked) == len(set(hub.asked))
    assert torch.equal(velocity(online), velocity(load_model(tiny_flux)))
    asked = list(hub.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(velocity(load_model(REPO)), velocity(online)) and meta_model(REPO).encoders and hub.asked == asked


def offline(monkeypatch, load):
    """Return `load` where nothing listens."""

    def loaded(*args, **settings):
        with monkeypatch.context() as patch:
            patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
            return load(*args, **settings)

    return loaded


@pytest.mark.parametrize(
    ("refusal", "remedy"),
    [
        ("gated", "accept its licence at http://127.0.0.1:.*/somebody/flux, then log in"),
        ("private", "log in with hf auth login if it is private"),
        ("unknown", "check the name"),
        ("disabled", "choose another model"),
        ("token", "log in with hf auth login"),
        ("failing", "the hub answers with an error .500.*try again later"),
    ],
)
def test_every_refusal_has_its_own_line(hub, refusal, remedy, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # it tries again after a while
    hub.refused[REPO] = refusal
    refused(remedy)


def test_what_is_not_there_is_told_from_what_cannot_be_reached(hub, monkeypatch):
    refused("no revision 'v2': choose a branch, a tag or a commit", revision="v2")
    assert "on the hub" in refused("check the path", name="a/b/c")
    refused("cannot be reached .*ConnectError", offline(monkeypatch, meta_model))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("unset it", name="somebody/another")


def test_a_revision_is_of_the_hub_only(hub, tiny_flux):
    assert meta_model(REPO, revision="v1").encoders
    refused("leave it out", name=str(tiny_flux), revision="v1")
    refused("leave it out", name="scenes", revision="v1")


@pytest.mark.parametrize(("number", "remedy"), [(errno.ENOSPC, "free some"), (errno.EACCES, "permissions")])
def test_a_cache_that_takes_nothing(hub, monkeypatch, number, remedy):
    def full(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("huggingface_hub.file_download._chmod_and_move", full)
    refused(remedy)


def test_weights_that_the_repository_lacks_are_known_before_any_are_downloaded(hub, tmp_path):
    (tmp_path / "repo" / "text_encoder_2" / "model.safetensors").rename(tmp_path / "repo" / "text_encoder_2" / "model.bin")
    refused("use_safetensors=False", load_model)
    refused("set it to null", load_model, variant="fp16")
    assert not [file for file in hub.asked if file.endswith(".safetensors")]


def test_a_half_downloaded_model_is_completed(hub, tmp_path):
    load_model(REPO)
    (file,) = (tmp_path / "cache").rglob("vae/*.safetensors")
    file.resolve().unlink()
    file.unlink()
    assert load_model(REPO).encoders and hub.asked[-1].startswith("vae/")


def test_a_transformer_of_the_hub_replaces_that_of_the_pipeline(hub, tiny_flux, tmp_path):
    hub.repos["other/transformers"] = tmp_path / "other"
    shutil.copytree(tiny_flux / "transformer", tmp_path / "other" / "inside" / "tuned")
    file = "inside/tuned/diffusion_pytorch_model.safetensors"
    true = velocity(load_model(tiny_flux))
    for place in ("other/transformers/inside/tuned", f"other/transformers/{file}", REPO):
        hub.asked.clear()
        assert meta_model(tiny_flux, transformer=place).encoders
        assert not [path for path in hub.asked if path.endswith(".safetensors")]
        assert torch.equal(velocity(load_model(tiny_flux, transformer=place)), true)
    hub.asked.clear()
    hub.repos["somebody/again"] = hub.repos[REPO]
    load_model("somebody/again", transformer=str(tiny_flux / "transformer"))
    assert not any(path.startswith("transformer/diffusion") for path in hub.asked)  # what is replaced is not downloaded
    refused("check the name", name=tiny_flux, transformer="other/transformers/inside/none.gguf")
    refused("check the name", name=tiny_flux, transformer="other/transformers/none")


def test_commands_end_with_2(hub, capsys, tmp_path):
    hub.refused[REPO] = "gated"
    out = str(tmp_path / "out")
    for command in (
        ["plan", f"model.path={REPO}"],
        ["sample", "--model", REPO, "--prompt", "x", "--out", out, "--device", "cpu"],
    ):
        assert main(command) == 2
        said = capsys.readouterr()
        assert said.err.count("\n") == 1 and "accept its licence" in said.err and not (tmp_path / "out").exists()
