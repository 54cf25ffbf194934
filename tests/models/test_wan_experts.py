"""Wan of two experts: rows, LoRAs, weights and runs."""

import re
from types import SimpleNamespace

import family_wan_experts
import family_wan_i2v
import pytest
import torch
from diffusers import AutoModel, DiffusionPipeline
from runs import settings
from safetensors.torch import load_file
from wan import PROMPTS, load, noise_of, train_lora

from neighbor_grpo.config import load_config
from neighbor_grpo.errors import UserError
from neighbor_grpo.models.attach import lora_off
from neighbor_grpo.models.backends import compile_blocks
from neighbor_grpo.models.lora import load_all, load_lora, save_all, save_lora
from neighbor_grpo.models.sampling import sample
from neighbor_grpo.run.export import export
from neighbor_grpo.run.export_request import check_request
from neighbor_grpo.run.weights import load_trained
from neighbor_grpo.training.learner import Learner
from neighbor_grpo.training.trainer import Trainer


def test_a_row_goes_to_the_expert_of_its_own_time(place):
    model = load(place["experts"])
    cond, x, t = model.encode(PROMPTS * 2), noise_of(model, 4), torch.tensor([0.3, 0.75, 0.7499, 1.0])
    v = model.velocity(x, t, cond)
    for expert, rows in ((model.pipe.transformer_2, [0, 2]), (model.pipe.transformer, [1, 3])):
        with torch.no_grad():
            alone = expert(x[rows], 1000 * t[rows], cond.text[rows], return_dict=False)[0]
        torch.testing.assert_close(v[rows], alone, atol=1e-5, rtol=1e-5)


def test_experts_that_start_from_a_picture_equal_the_pipelines(place, pictures):
    model = load(place["i2v-A14B"], cfg=4.0)
    ours = sample(model, model.encode(PROMPTS, pictures), noise_of(model)[:, None], 3, "euler")[:, 0]
    pipe = DiffusionPipeline.from_pretrained(place["i2v-A14B"])
    torch.testing.assert_close(ours, family_wan_i2v.call(pipe, model, noise_of(model), PROMPTS, 3, pictures), atol=1e-4, rtol=0)


def test_what_is_asked_of_a_transformer_is_asked_of_both(place):
    model = load(place["experts"], attention="native")
    model.transformer.enable_gradient_checkpointing()
    compile_blocks(model.transformer)
    for expert in (model.pipe.transformer, model.pipe.transformer_2):
        assert expert.gradient_checkpointing and expert.blocks[0].attn1.processor._attention_backend == "native"
        assert expert.blocks[1]._compiled_call_impl


def velocities(model):
    cond = model.encode(PROMPTS)
    with torch.no_grad():
        return model.velocity(noise_of(model), torch.tensor([0.9, 0.3]), cond)


def test_what_both_experts_learned_is_loaded_again(place, tmp_path):
    model = load(place["experts"])
    plain = velocities(model)
    train_lora(model)
    taught = velocities(model)
    assert all((a - b).abs().max() > 1e-2 for a, b in zip(plain, taught, strict=True))
    with lora_off(model.transformer):
        torch.testing.assert_close(velocities(model), plain)
    weights = {name: 2 * weight for name, weight in model.transformer.named_parameters() if weight.requires_grad}
    for other, directory in ((None, tmp_path / "a"), (weights, tmp_path / "b")):
        save_lora(model.pipe, model.transformer, directory, other)
        fresh = load(place["experts"])
        load_lora(fresh.transformer, directory)
        if other:
            model.transformer.load_state_dict(other, strict=False)
        torch.testing.assert_close(velocities(fresh), velocities(model))


def test_all_weights_of_both_experts_are_loaded_again(place, tmp_path):
    model, fresh = load(place["experts"]), load(place["experts"])
    weights = {name: weight + 0.1 for name, weight in model.transformer.named_parameters() if "proj_out" in name}
    save_all(model.transformer, tmp_path, weights)
    load_all(fresh.transformer, tmp_path)
    model.transformer.load_state_dict(weights, strict=False)
    torch.testing.assert_close(velocities(fresh), velocities(model))


def test_a_lora_of_one_expert_is_refused(place, tmp_path):
    single, model = load(place["t2v"]), load(place["experts"])
    train_lora(single)
    save_lora(single.pipe, single.transformer, tmp_path)
    with pytest.raises(UserError, match="2 experts"):
        load_lora(model.transformer, tmp_path)


@pytest.mark.slow
def test_a_run_of_two_experts_is_exported_whole(place, tmp_path):
    small = ("model.height=32", "model.width=32", "model.num_frames=5", "ema=null", "optimizer.lr=0.1", "iterations=1")
    for kind in ("lora", "all"):
        (tmp_path / kind).mkdir()
        lora = () if kind == "lora" else ("model.lora=null",)
        run = Trainer(load_config(None, settings(place["experts"], tmp_path / kind, *small, *lora))).run()
        ours = velocities(load_trained(None, run, "cpu").model)
        assert all((a - b).abs().max() > 1e-3 for a, b in zip(ours, velocities(load(place["experts"])), strict=True))
        export(check_request(run, "merged", tmp_path / kind / "merged"))
        torch.testing.assert_close(velocities(load(tmp_path / kind / "merged")), ours, atol=1e-4, rtol=1e-4)
        export(check_request(run, "diffusers", tmp_path / kind / "out"))
        fresh = load(place["experts"])
        drawn_by_the_card(tmp_path / kind / "out", fresh.pipe)
        torch.testing.assert_close(velocities(fresh), ours, atol=1e-4, rtol=1e-4)
    export(check_request(tmp_path / "lora" / "run", "comfyui", tmp_path / "comfyui"))
    names = {file.name: load_file(file).keys() for file in (tmp_path / "comfyui").glob("*.safetensors")}
    assert names.keys() == {"run_high_noise.safetensors", "run_low_noise.safetensors"}
    assert all(key.startswith("diffusion_model.blocks.") for keys in names.values() for key in keys)


def drawn_by_the_card(folder, pipe):
    """Load trained weights into a pipeline in fp32 by the lines of the model card that do so."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]
    if "load_lora_weights" in code:
        lines = [line.replace("repo", repr(str(folder)), 1) for line in code.splitlines() if line.startswith("pipe.load_lora")]
        assert len(lines) == 2
        exec("\n".join(lines), {"pipe": pipe})
        return
    trained = re.search(r"trained = \{.*?\}", code, re.S)[0].replace("torch.bfloat16", "torch.float32")
    scope = {"AutoModel": AutoModel, "torch": torch, "repo": str(folder)}
    exec(trained, scope)
    assert scope["trained"].keys() == {"transformer", "transformer_2"}
    for name, part in scope["trained"].items():
        getattr(pipe, name).load_state_dict(part.state_dict())


def test_two_experts_are_not_divided(place):
    with pytest.raises(UserError, match="without FSDP2"):
        Learner(load(place["experts"]), load_config(None, []), SimpleNamespace(is_fsdp2=True))


def test_a_pipeline_without_its_second_expert_is_refused(tmp_path):
    pipe = family_wan_experts.build()
    pipe.transformer_2 = None
    pipe.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="one is missing"):
        load(tmp_path)
