from dataclasses import replace

import pytest
import torch
from diffusers import ZImagePipeline
from family_z_image import LENGTH, build, call

from neighbor_grpo.errors import UserError
from neighbor_grpo.models.registry import load_model
from neighbor_grpo.models.sampling import sample

PROMPTS = ["a red circle left of a blue square", "three green triangles"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("z_image")
    build().save_pretrained(directory)
    return directory


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_the_dynamic_shift_is_the_pipelines(tmp_path):
    build(dynamic_shift=True).save_pretrained(tmp_path)
    model = load_model(tmp_path)
    noise = model.noise(2, seeded(0))
    ours = sample(model, model.encode(PROMPTS), noise[:, None], 4, "euler")[:, 0]
    theirs = call(ZImagePipeline.from_pretrained(tmp_path), model, noise, PROMPTS, 4)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_noise_is_the_pipelines_own_for_a_seed(place):
    model, pipe = load_model(place, height=48), ZImagePipeline.from_pretrained(place)
    theirs = pipe.prepare_latents(1, pipe.transformer.in_channels, 48, 32, torch.float32, "cpu", seeded(3))
    assert torch.equal(model.noise(1, seeded(3)), theirs)


def test_what_is_after_a_prompts_end_is_not_seen(place):
    model = load_model(place)
    cond, x = model.encode(PROMPTS), model.noise(2, seeded(0))
    assert cond.text.shape[:2] == (2, LENGTH) and cond.length.tolist() == [len(prompt) + 3 for prompt in PROMPTS]
    text = cond.text.clone()
    text[1, cond.length[1] :] = 9.0
    assert torch.equal(model.velocity(x, 0.5, cond), model.velocity(x, 0.5, replace(cond, text=text)))
    shorter = replace(cond, length=cond.length - 1)
    assert (model.velocity(x, 0.5, cond) - model.velocity(x, 0.5, shorter)).abs().max() > 1e-4


def test_sides_beyond_the_positions_of_the_model_are_refused(place):
    """16 tokens a side, of 2 x 2 positions of 4 x 4 pixels."""
    model = load_model(place, width=128)
    assert model.velocity(model.noise(1, seeded(0)), 0.5, model.encode(PROMPTS[:1])).isfinite().all()
    with pytest.raises(UserError, match=r"sides of up to 128 pixels, not 32 x 136: set height and width"):
        load_model(place, width=136)
