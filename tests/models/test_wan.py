"""Wan, text to video: text, times, precision, defaults."""

import family_wan
import family_wan_i2v
import pytest
import torch
from diffusers import DiffusionPipeline, UniPCMultistepScheduler
from wan import PROMPTS, load, noise_of

from neighbor_grpo.errors import UserError
from neighbor_grpo.models.registry import load_model
from neighbor_grpo.models.sampling import sample


def test_text_is_padded_with_zeros_and_a_long_one_is_cut(place):
    model, short = load(place["t2v"]), load(place["t2v"], max_sequence_length=6)
    (text,) = model.encode(PROMPTS)
    assert text.shape == (2, 512, 24)
    assert [int(row.any(-1).sum()) for row in text] == [9, 4] and not text[0, 9:].any()  # words and the end
    assert short.encode(PROMPTS).text.shape == (2, 6, 24) and short.encode(PROMPTS).text[0].any(-1).all()


def test_times_are_the_sigmas_of_unipc_with_its_shift(place):
    """Shift 5 of an even grid that ends one step above 1/1000; the first, 1e-6 below 1 there, is 1."""
    model = load(place["unipc"])
    even = [1 - n / 4 * (1 - 1e-3) for n in range(4)]
    assert model.times(4) == pytest.approx([5 * t / (1 + 4 * t) for t in even] + [0.0], abs=1e-6) and model.times(4)[0] == 1
    scheduler = DiffusionPipeline.from_pretrained(place["unipc"]).scheduler
    for steps in (4, 10, 47, 50):  # and timesteps, integers
        scheduler.set_timesteps(steps)
        assert model.times(steps) == pytest.approx(scheduler.sigmas.tolist(), abs=2e-6)
        assert torch.equal(model.timestep(torch.tensor(model.times(steps)[:-1])).long(), scheduler.timesteps)


def test_unipc_of_first_order_without_its_corrector_is_euler(place):
    """Its predictor, in the data prediction: y = (s/t)·x + (1 - s/t)·x0."""
    model = load(place["unipc"])
    ours = sample(model, model.encode(PROMPTS), noise_of(model)[:, None], 4, "euler")[:, 0]
    theirs = family_wan.call(DiffusionPipeline.from_pretrained(place["unipc"]), model, noise_of(model), PROMPTS, 4)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_scheduler_of_no_flow_is_refused(tmp_path):
    family_wan.build(UniPCMultistepScheduler(prediction_type="flow_prediction")).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="use_flow_sigmas"):
        load(tmp_path).times(4)


@pytest.mark.parametrize("name", ["t2v", "experts"])
def test_in_half_precision_it_runs_as_in_its_pipeline(place, name):
    """Without autocast: Wan keeps its norms and its time in fp32 itself."""
    model = load(place[name], dtype=torch.bfloat16)
    cond, x = model.encode(PROMPTS), noise_of(model)
    kept = {name for name, weight in model.pipe.transformer.named_parameters() if weight.dtype == torch.float32}
    assert any("time_embedder" in name for name in kept)
    with torch.no_grad():
        theirs = model.pipe.transformer(x.bfloat16(), torch.full((2,), 900.0), cond.text, return_dict=False)[0]
        assert torch.equal(model.velocity(x, 0.9, cond), theirs.float())


def test_settings_that_do_not_fit_are_refused(place, tmp_path):
    with pytest.raises(UserError, match="set it to 5 or 9"):
        load(place["t2v"], frames=7)
    with pytest.raises(UserError, match="multiples of 16"):
        load(place["t2v"], side=40)
    with pytest.raises(UserError, match="leave out max_sequence_length"):
        load(place["i2v"], max_sequence_length=128)
    assert load(place["i2v-A14B"], max_sequence_length=128).max_sequence_length == 128  # it has no such layers
    family_wan_i2v.build(pos_embed_seq_len=10).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="last picture"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["t2v", "i2v"])
def test_defaults_are_the_pipelines(place, name):
    model, pipe = load_model(place[name]), DiffusionPipeline.from_pretrained(place[name])
    assert (model.height, model.width, model.frames, model.max_sequence_length) == (480, 832, 81, family_wan.LENGTH)
    picture = [torch.zeros(1, 3, 32, 32)] * (name == "i2v")
    theirs = pipe.prepare_latents(*picture, 1, 4, 32, 32, 5, torch.float32, "cpu", torch.Generator().manual_seed(3))
    assert torch.equal(noise_of(load(place[name]), 1), theirs[0] if picture else theirs)
