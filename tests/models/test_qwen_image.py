import math
from dataclasses import replace

import family_qwen_image as family
import pytest
import torch
from diffusers import QwenImagePipeline

from neighbor_grpo.models.registry import load_model
from neighbor_grpo.models.sampling import sample

PROMPTS = ["a red circle left of a blue square", "three green triangles"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("qwen_image")
    family.build().save_pretrained(directory)
    return directory


def test_conditioning_is_the_prompts_tokens_and_padding(place):
    """The template's beginning is dropped, its end (5 tokens) is not; a long prompt is cut; padding never counts."""
    model, short = (load_model(place, height=32, width=32, max_sequence_length=length) for length in (None, 16))
    cond = model.encode(PROMPTS)
    assert cond.text.shape == (2, 512, 32) and cond.mask.shape == (2, 512)
    assert cond.mask.sum(1).tolist() == [8 + 5, 3 + 5] and not cond.text[~cond.mask].any()
    noise = model.noise(2, torch.Generator().manual_seed(0))
    v = model.velocity(noise, 0.6, cond)
    torch.testing.assert_close(v, short.velocity(noise, 0.6, short.encode(PROMPTS)), atol=1e-5, rtol=1e-4)
    other = replace(cond, text=torch.where(cond.mask[..., None], cond.text, 9.0))
    torch.testing.assert_close(v, model.velocity(noise, 0.6, other), atol=1e-5, rtol=1e-4)
    assert short.encode(["red circle " * 20]).mask.sum() == 16


def test_guidance_turns_each_tokens_velocity_and_keeps_its_length(place):
    plain, guided = (load_model(place, height=32, width=32, cfg=cfg) for cfg in (1.0, 4.0))
    cond, noise = plain.encode(PROMPTS), plain.noise(2, torch.Generator().manual_seed(0))
    v, w = plain.velocity(noise, 0.6, cond), guided.velocity(noise, 0.6, cond)
    torch.testing.assert_close(w.norm(dim=-1), v.norm(dim=-1), atol=1e-5, rtol=1e-5)
    assert (w - v).abs().max() > 1e-3


def test_times_are_shifted_by_the_tokens_and_stretched_to_the_schedulers_end(place):
    """Shift m = exp(mu), mu on the line through (256, 0.5) and (8192, 0.9), then the last time before 0 is 0.02."""
    times = load_model(place, height=32, width=32).times(4)  # 16 tokens
    m = math.exp(0.5 + (0.9 - 0.5) / (8192 - 256) * (16 - 256))
    shifted = [m * t / (1 + (m - 1) * t) for t in (1.0, 0.75, 0.5, 0.25)]
    stretched = [1 - (1 - t) * (1 - 0.02) / (1 - shifted[-1]) for t in shifted]
    assert times == pytest.approx([*stretched, 0.0], abs=1e-6)


def test_another_schedule_is_read_from_the_configuration(tmp_path):
    family.build(use_dynamic_shifting=False, shift=3.0, shift_terminal=None).save_pretrained(tmp_path)
    model = load_model(tmp_path, height=48, width=32)
    noise = model.noise(2, torch.Generator().manual_seed(0))
    ours = sample(model, model.encode(PROMPTS), noise[:, None], 4, "euler")[:, 0]
    theirs = family.call(QwenImagePipeline.from_pretrained(tmp_path), model, noise, PROMPTS, 4)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_defaults_are_the_pipelines(place):
    model, pipe = load_model(place), QwenImagePipeline.from_pretrained(place)
    assert (model.height, model.width, model.max_sequence_length) == (128 * 4, 128 * 4, family.LENGTH)
    theirs = pipe.prepare_latents(1, 4, 512, 512, torch.float32, "cpu", torch.Generator().manual_seed(3))
    assert torch.equal(model.noise(1, torch.Generator().manual_seed(3)), theirs)
