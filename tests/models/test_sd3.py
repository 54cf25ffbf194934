import family_sd3 as family
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from neighbor_grpo.errors import UserError
from neighbor_grpo.models.registry import load_model
from neighbor_grpo.models.sampling import sample

PROMPTS = ["a red circle left of a blue square", "three green triangles"]


@pytest.mark.parametrize(("dynamic", "t5"), [(True, True), (False, False)])
def test_the_shift_and_a_dropped_t5_are_the_pipelines(tmp_path, dynamic, t5):
    family.build(dynamic, t5).save_pretrained(tmp_path)
    model = load_model(tmp_path, height=48, max_sequence_length=20)
    cond, noise = model.encode(PROMPTS), model.noise(2, torch.Generator().manual_seed(0))
    assert cond.text.shape == (2, 12 + 20, 40) and bool(cond.text[:, 12:].any()) == t5
    ours = sample(model, cond, noise[:, None], 4, "euler")[:, 0]
    dropped = {} if t5 else {"text_encoder_3": None, "tokenizer_3": None}
    pipe = StableDiffusion3Pipeline.from_pretrained(tmp_path, **dropped)
    theirs = family.call(pipe, model, noise, PROMPTS, 4)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_defaults_are_the_configurations(tmp_path):
    """Sides of 8 positions x 4 pixels, unlike the VAE's own 256; the static shift; noise as the pipeline draws it."""
    pipe = family.build()
    pipe.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert (model.height, model.width, model.max_sequence_length) == (32, 32, family.LENGTH)
    pipe.scheduler.set_timesteps(4)
    assert model.times(4) == pipe.scheduler.sigmas.tolist()
    theirs = pipe.prepare_latents(1, 4, 32, 32, torch.float32, "cpu", torch.Generator().manual_seed(3))
    assert torch.equal(model.noise(1, torch.Generator().manual_seed(3)), theirs)


def test_sides_beyond_the_positions_of_the_model_are_refused(tmp_path):
    """24 tokens a side, of 2 x 2 positions of 4 x 4 pixels."""
    family.build().save_pretrained(tmp_path)
    model = load_model(tmp_path, height=192, width=32)
    x = model.noise(1, torch.Generator().manual_seed(0))
    assert model.velocity(x, 0.5, model.encode(PROMPTS[:1])).isfinite().all()
    with pytest.raises(UserError, match=r"sides of up to 192 pixels, not 200 x 32: set height and width"):
        load_model(tmp_path, height=200)
