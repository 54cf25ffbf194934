"""A run of every family, exported in every form, draws again what the run saw: in diffusers, here, and by its card."""

import json
import re

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from runs import settings
from test_contract import FAMILIES, Case

from neighbor_grpo.config import load_config
from neighbor_grpo.models.lora import load_lora
from neighbor_grpo.models.registry import load_model
from neighbor_grpo.run.export import export
from neighbor_grpo.run.export_request import check_request
from neighbor_grpo.run.weights import load_trained
from neighbor_grpo.training.trainer import Trainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tmp_path_factory):
    return Case(FAMILIES[request.param], tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def run(case, tmp_path_factory):
    home = tmp_path_factory.mktemp("run")
    file = home / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt.text, **prompt.metadata}) + "\n" for prompt in case.prompts))
    small = (
        "iterations=1", "evaluate.prompts=1", "evaluate.seeds=1", "evaluate.num_steps=2", "watch=[jpeg_size]", "ema=null",
        "optimizer.lr=0.1", "model.lora.alpha=6", f"model.lora.targets=[{', '.join(case.family.LORA)}]",
        f"prompts.path={file}", f"prompts.eval_path={file}",
    )  # fmt: skip
    sizes = (f"model.{key}={value}" for key, value in case.settings().items())
    return Trainer(load_config(None, [*settings(case.place, home), *sizes, *small])).run()


def test_what_is_exported_draws_what_the_run_saw(case, run, tmp_path):
    ours = case.drawn(load_trained(None, run, "cpu").model, 3)
    assert (ours - case.drawn(case.load(), 3)).abs().max() > 1e-2
    out = export(check_request(run, "diffusers", tmp_path / "out"))
    own, theirs = case.load(), DiffusionPipeline.from_pretrained(case.place)
    load_lora(own.transformer, out)
    torch.testing.assert_close(case.drawn(own, 3), ours, atol=1e-4, rtol=0)
    getattr(case.family, "load_lora", lambda pipe, place: pipe.load_lora_weights(place))(theirs, out)
    torch.testing.assert_close(case.called(own, 3, theirs), ours, atol=1e-4, rtol=0)
    merged = export(check_request(run, "merged", tmp_path / "merged"))
    torch.testing.assert_close(case.drawn(load_model(merged, **case.settings()), 3), ours, atol=1e-4, rtol=0)


@pytest.mark.parametrize("form", ["diffusers", "merged"])
def test_the_snippet_runs(case, run, form, tmp_path, monkeypatch):
    out = export(check_request(run, form, tmp_path / "out"))
    code = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)[1]
    (tmp_path / case.place.name).symlink_to(case.place)
    Image.new("RGB", (40, 40)).save(tmp_path / "first.png")
    monkeypatch.chdir(tmp_path)
    exec(code.replace('repo = "."', 'repo = "out"'), {})
    assert len([*tmp_path.glob("image.png"), *tmp_path.glob("video.gif")]) == 1
