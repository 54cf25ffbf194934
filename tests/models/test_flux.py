import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from pipelines import build_flux

from neighbor_grpo.errors import UserError
from neighbor_grpo.models.attach import add_lora
from neighbor_grpo.models.bundled import BUNDLED
from neighbor_grpo.models.registry import load_model
from neighbor_grpo.models.sampling import sample

PROMPTS = ["a red circle left of a blue square", "three green triangles"]


def pipeline_pictures(pipe, model, noise, steps, length):
    """FluxPipeline's own __call__ on packed noise [n, tokens, channels], in [0, 1]."""
    return pipe(
        PROMPTS,
        height=model.height,
        width=model.width,
        num_inference_steps=steps,
        guidance_scale=model.guidance_scale,
        latents=noise,
        max_sequence_length=length,
        output_type="pt",
    ).images


@pytest.mark.parametrize(("height", "width", "steps", "guidance"), [(32, 32, 5, 3.5), (48, 32, 3, 1.7)])
def test_sampling_equals_the_pipelines_call(tiny_flux, height, width, steps, guidance):
    model = load_model(tiny_flux, height=height, width=width, guidance_scale=guidance)
    add_lora(model.transformer, 4, 8, list(model.lora_targets))
    noise = torch.cat([model.noise(1, torch.Generator().manual_seed(seed)) for seed in (1, 2)])
    ours = sample(model, model.encode(PROMPTS), noise[:, None], steps, "euler")[:, 0]
    pipe = FluxPipeline.from_pretrained(tiny_flux)
    theirs = pipeline_pictures(pipe, model, noise, steps, 24)
    assert ours.shape == (2, 3, height, width)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("guidance", "dynamic"), [(False, True), (True, False)])
def test_guidance_embedding_and_shift_come_from_the_configuration(tmp_path, guidance, dynamic):
    build_flux(guidance, dynamic).save_pretrained(tmp_path)
    model = load_model(tmp_path)
    noise = model.noise(2, torch.Generator().manual_seed(0))
    ours = sample(model, model.encode(PROMPTS), noise[:, None], 4, "euler")[:, 0]
    theirs = pipeline_pictures(FluxPipeline.from_pretrained(tmp_path), model, noise, 4, 24)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("asked", [None, 128])
def test_schnell_is_its_pipeline_in_four_even_steps(tmp_path, asked):
    """No guidance embedding, a static schedule without a shift; text as long as its tokenizer allows, or as is asked."""
    pipe = build_flux(guidance=False)
    pipe.scheduler, pipe.tokenizer_2.model_max_length = FlowMatchEulerDiscreteScheduler(shift=1.0), 256
    pipe.save_pretrained(tmp_path)
    model = load_model(tmp_path, max_sequence_length=asked)
    cond, noise = model.encode(PROMPTS), model.noise(2, torch.Generator().manual_seed(0))
    assert model.times(4) == [1.0, 0.75, 0.5, 0.25, 0.0] and cond.text.shape == (2, asked or 256, 40)
    ours = sample(model, cond, noise[:, None], 4, "euler")[:, 0]
    theirs = pipeline_pictures(FluxPipeline.from_pretrained(tmp_path), model, noise, 4, asked or 256)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_bundled_model_equals_the_pipelines_call():
    model = load_model("scenes")
    noise = model.noise(2, torch.Generator().manual_seed(0))
    ours = sample(model, model.encode(PROMPTS), noise[:, None], 4, "euler")[:, 0]
    theirs = pipeline_pictures(FluxPipeline.from_pretrained(BUNDLED["scenes"]), model, noise, 4, 12)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_noise_is_the_pipelines_own_for_a_seed(tiny_flux):
    model, pipe = load_model(tiny_flux), FluxPipeline.from_pretrained(tiny_flux)
    theirs, _ = pipe.prepare_latents(1, 4, 32, 32, torch.float32, "cpu", torch.Generator().manual_seed(3))
    assert torch.equal(model.noise(1, torch.Generator().manual_seed(3)), theirs)


def test_times_run_from_one_to_zero_by_the_dynamic_rule(tiny_flux):
    """Shift m = exp(mu), mu on the line through (256, 0.5) and (4096, 1.15); 32 x 32 pixels are 16 tokens here."""
    times = load_model(tiny_flux, height=32, width=32).times(4)
    m = torch.tensor(0.5 + (1.15 - 0.5) / (4096 - 256) * (16 - 256)).exp()
    expected = [float(m * t / (1 + (m - 1) * t)) for t in (1.0, 0.75, 0.5, 0.25)] + [0.0]
    assert times == pytest.approx(expected, abs=1e-6)


def test_no_pipeline_and_foreign_families_are_named(tmp_path):
    with pytest.raises(UserError, match=r"model_index.json"):
        load_model(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(UserError, match=r"StableDiffusionPipeline.*FluxPipeline"):
        load_model(tmp_path)


def test_sizes_that_the_vae_cannot_hold_and_targets_that_fit_nothing(tiny_flux):
    with pytest.raises(UserError, match="multiples of 8"):
        load_model(tiny_flux, height=36)
    with pytest.raises(UserError, match=r"to_nothing.*to_q"):
        add_lora(load_model(tiny_flux).transformer, 4, 4, ["to_nothing"])
