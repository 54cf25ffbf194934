"""Exports and the hub: sent only where asked and allowed, with a card that it reads and a snippet that runs."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from diffusers import DiffusionPipeline
from hub_for_pushes import Hub, serving
from huggingface_hub import constants
from PIL import Image
from runs import settings
from test_cli import mistake, run

from neighbor_grpo.config import load_config
from neighbor_grpo.training.trainer import Trainer

CARD = """---
license: other
license_name: tiny-license
license_link: LICENSE.md
---
# Tiny
"""
TITLE = "a: 'run' \"of\" 模型 #1"
PROMPTS = ("yes: a \"red\" circle, 'blue' # star", "红色的圆", "- [a] {b} | c")


@pytest.fixture(scope="module")
def base(tiny_flux, tmp_path_factory):
    """A cache of the hub that holds the tiny pipeline as org/tiny; no network is needed for it."""
    cache, commit = tmp_path_factory.mktemp("hub"), "0" * 39 + "1"
    place = cache / "models--org--tiny"
    shutil.copytree(tiny_flux, place / "snapshots" / commit)
    (place / "snapshots" / commit / "README.md").write_text(CARD)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        yield "org/tiny"


@pytest.fixture(scope="module", params=["lora", "full"])
def trained(request, base, tmp_path_factory):
    """A run from org/tiny, of a name and of prompts with every sign that YAML or Markdown could read otherwise."""
    home = tmp_path_factory.mktemp(request.param)
    kind = () if request.param == "lora" else ("model.lora=null",)
    size = ("model.height=32", "model.width=32", "evaluate.num_steps=2", "iterations=1", "watch=[saturation]")
    arguments = settings(base, home, *kind, *size)
    (home / "prompts.txt").write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    place = Trainer(load_config(None, [*arguments, f"run_dir={home}/run"])).run()
    return request.param, place.rename(home / TITLE)


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    with serving(hub) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_stand_in")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub


def front(card: str) -> dict:
    return yaml.safe_load(card.split("---\n", 2)[1])


def test_the_card_says_what_the_hub_reads(capsys, trained, tmp_path):
    kind, place = trained
    assert run(capsys, "export", place, "--out", tmp_path / "out")[0] == 0
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    said = front(card)
    assert said["base_model"] == "org/tiny"
    assert said["base_model_relation"] == ("adapter" if kind == "lora" else "finetune")
    assert (said["license"], said["license_name"]) == ("other", "tiny-license")
    assert said["license_link"] == "https://huggingface.co/org/tiny/blob/main/LICENSE.md"
    assert [entry["text"] for entry in said["widget"]] == [*PROMPTS] and f"# {TITLE}\n" in card


@pytest.mark.parametrize("form", ["diffusers", "merged"])
def test_the_snippet_of_the_card_runs_as_it_is(capsys, trained, tmp_path, monkeypatch, form):
    _, place = trained
    assert run(capsys, "export", place, "--format", form, "--out", tmp_path / "out")[0] == 0
    code = re.search(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(encoding="utf-8"), re.S)[1]
    monkeypatch.chdir(tmp_path / "out")
    monkeypatch.setattr(DiffusionPipeline, "set_progress_bar_config", lambda *_, **__: None)
    exec(code, {})
    assert Image.open("image.png").size == (32, 32)


LORA = pytest.mark.parametrize("trained", ["lora"], indirect=True)


@LORA
def test_push_sends_the_export(capsys, trained, tmp_path, hub):
    _, place = trained
    code, out, err = run(capsys, "export", place, "--out", tmp_path / "out", "--push", "us/tiny", "--private")
    assert (code, err) == (0, "") and out.splitlines() == [str(tmp_path / "out"), f"{hub.address}/us/tiny"]
    assert hub.private == {"us/tiny": True}
    sent = {name: content for name, content in hub.files["us/tiny"].items()}
    here = {str(f.relative_to(tmp_path / "out")): f.read_bytes() for f in (tmp_path / "out").rglob("*") if f.is_file()}
    assert sent == {name: content for name, content in here.items() if name != "manifest.json"}
    assert "pytorch_lora_weights.safetensors" in sent
    assert 'repo = "us/tiny"' in sent["README.md"].decode()


@LORA
def test_nothing_is_asked_without_push(capsys, trained, tmp_path, hub):
    assert run(capsys, "export", trained[1], "--out", tmp_path / "out")[0] == 0
    assert not [line for line in hub.asked if not line.startswith(("GET /org/", "HEAD /org/", "GET /api/models/org/"))]


@LORA
def test_what_keeps_the_hub_from_taking_it_is_said_before_anything_is_written(capsys, trained, tmp_path, hub, monkeypatch):
    _, place = trained

    def refused(*arguments):
        said = mistake(capsys, "export", place, "--out", tmp_path / "out", "--push", *arguments)
        assert not (tmp_path / "out").exists() and not hub.files and not any("POST" in line for line in hub.asked)
        return said

    for name in ("tiny", "me/", "/tiny", "me/a/b", "me/ti ny", "https://huggingface.co/me/tiny", "", "me/" + "x" * 200):
        assert "NAME/REPO" in refused(name) and not hub.asked
    assert "--format diffusers" in refused("me/tiny", "--format", "comfyui")
    assert "me, us" in refused("them/tiny")
    hub.private["me/public"] = False
    assert "leave out --private" in refused("me/public", "--private")
    hub.user["auth"]["accessToken"]["role"] = "read"
    assert "may write" in refused("me/tiny")
    for status, remedy in ((401, "hf auth login"), (403, "may not write"), (500, "try again later")):
        hub.fails = {"/api/whoami-v2": status}
        assert remedy in refused("me/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refused("me/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "network" in refused("me/tiny")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", os.devnull)
    assert "hf auth login" in refused("me/tiny")


@LORA
def test_a_mistake_loads_no_library(trained, tmp_path):
    """Nor does asking the hub: what a push lacks is known in a moment."""
    _, place = trained
    export = ["export", str(place)]
    mistakes = [[*export, "--out", str(place)], [*export, "--push", "me/tiny"], [*export, "--private"]]
    code = f"import sys; from neighbor_grpo.cli import main; print([main(m) for m in {mistakes}], 'torch' in sys.modules)"
    environment = os.environ | {"HF_TOKEN": "hf_stand_in"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "[2, 2, 2] False\n"
    lines = done.stderr.splitlines()
    assert len(lines) == 3 and all(r in line for r, line in zip(("not empty", "HF_HUB_OFFLINE", "--push"), lines, strict=True))


@LORA
def test_an_export_whose_push_fails_stays(capsys, trained, tmp_path, hub):
    hub.fails = {"/api/repos/create": 403}
    said = mistake(capsys, "export", trained[1], "--out", tmp_path / "out", "--push", "me/tiny")
    assert "may not write" in said and f"hf upload me/tiny {tmp_path / 'out'}" in said
    assert (tmp_path / "out" / "README.md").is_file() and not hub.files
