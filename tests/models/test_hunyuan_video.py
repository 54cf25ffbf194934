from dataclasses import replace

import family_hunyuan_video as family
import pytest
import torch
from diffusers import HunyuanVideoPipeline

from neighbor_grpo.errors import UserError
from neighbor_grpo.models.backends import choose_attention
from neighbor_grpo.models.registry import load_model
from neighbor_grpo.models.sampling import sample

PROMPTS = ["a red circle left of a blue square", "three green triangles"]
SMALL = {"height": 32, "width": 32, "num_frames": 5}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("hunyuan_video")
    family.build().save_pretrained(directory)
    return directory


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_conditioning_is_the_prompts_tokens_and_padding(place):
    """Text begins with the prompt and ends with the template's last token; a long prompt is cut; padding never counts."""
    model, short = load_model(place, **SMALL), load_model(place, **SMALL, max_sequence_length=12)
    cond, cut = model.encode(PROMPTS), short.encode([*PROMPTS, "red circle " * 20])
    assert cond.text.shape == (2, 256, 24) and cond.pooled.shape == (2, 32)
    assert cond.mask.sum(1).tolist() == [8 + 1, 3 + 1] and cut.mask.sum(1).tolist() == [9, 4, 12]
    alike, other = model.encode(["three green circle", "three red triangles"]).text, model.encode(["a green triangles"]).text
    assert torch.equal(alike[:, 0], cond.text[[1, 1], 0]) and not torch.equal(other[0, 0], cond.text[1, 0])
    noise = model.noise(2, seeded(0))
    v = model.velocity(noise, 0.6, cond)
    torch.testing.assert_close(v, short.velocity(noise, 0.6, short.encode(PROMPTS)), atol=1e-5, rtol=1e-4)
    nines = replace(cond, text=torch.where(cond.mask[..., None], cond.text, 9.0))
    torch.testing.assert_close(v, model.velocity(noise, 0.6, nines), atol=1e-5, rtol=1e-4)
    assert (v - model.velocity(noise, 0.6, replace(cond, mask=torch.ones_like(cond.mask)))).abs().max() > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blank_conditioning_has_the_shapes_and_types_of_a_prompts(place, dtype):
    model = load_model(place, dtype=dtype, max_sequence_length=20, **SMALL)
    for empty, cond in zip(model.blank(2), model.encode(PROMPTS), strict=True):
        assert (empty.shape, empty.dtype) == (cond.shape, cond.dtype)


def test_shapes_are_known_without_data(place):
    model = load_model(place, device="meta", **SMALL)
    x = model.noise(2, seeded(0))
    v = model.forward(x, torch.full((2,), 0.5, device="meta"), model.blank(2))
    assert v.device.type == "meta" and v.shape == x.shape == (2, 4, 2, 4, 4)


@pytest.mark.parametrize(("guidance", "scale", "frames"), [(True, 6.0, 1), (False, None, 21)])
def test_guidance_embedding_and_frames_are_the_pipelines(tmp_path, guidance, scale, frames):
    """21 frames are more than the VAE decodes at once."""
    family.build(guidance).save_pretrained(tmp_path)
    model = load_model(tmp_path, **SMALL | {"num_frames": frames}, guidance_scale=scale)
    noise = model.noise(2, seeded(0))
    ours = sample(model, model.encode(PROMPTS), noise[:, None], 4, "euler")[:, 0]
    assert ours.shape == (2, frames, 3, 32, 32)
    theirs = family.call(HunyuanVideoPipeline.from_pretrained(tmp_path), model, noise, PROMPTS, 4)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_step_in_bfloat16_is_the_pipelines(place):
    """In bfloat16 the guidance of 6000 is rounded, and a random-weight model sees it."""
    model = load_model(place, dtype=torch.bfloat16, guidance_scale=6.0, **SMALL)
    noise = model.noise(2, seeded(0))
    v = model.velocity(noise, 1.0, model.encode(PROMPTS))
    theirs = HunyuanVideoPipeline.from_pretrained(place, dtype=torch.bfloat16)(
        PROMPTS, height=32, width=32, num_frames=5, num_inference_steps=1, latents=noise, output_type="latent"
    ).frames
    assert (theirs - (noise - v)).norm() < 0.01 * v.norm()


def test_an_attention_backend_that_takes_no_masks_is_a_users_mistake(place):
    model = load_model(place, attention="_native_flash", **SMALL)
    try:
        with pytest.raises(UserError, match=r"model\.attention: .*`attn_mask` is not"):
            model.velocity(model.noise(1, torch.Generator()), 0.5, model.blank(1))
    finally:
        choose_attention(model.transformer, "native")


def test_guidance_scale_is_read(place):
    assert load_model(place, **SMALL).guidance_scale == 6.0  # its pipeline's own
    weak, strong = (load_model(place, guidance_scale=scale, **SMALL) for scale in (1.0, 6.0))
    cond, x = weak.encode(PROMPTS), weak.noise(2, seeded(0))
    assert (weak.velocity(x, 0.6, cond) - strong.velocity(x, 0.6, cond)).abs().max() > 1e-4


def test_defaults_and_noise_are_the_pipelines(place):
    model, pipe = load_model(place), HunyuanVideoPipeline.from_pretrained(place)
    assert (model.height, model.width, model.frames, model.max_sequence_length) == (720, 1280, 129, 256)
    theirs = pipe.prepare_latents(1, 4, 720, 1280, 129, torch.float32, "cpu", seeded(3))
    assert torch.equal(model.noise(1, seeded(3)), theirs)


def test_times_are_shifted_by_the_schedulers_constant(place):
    times = load_model(place, **SMALL).times(4)
    assert times == pytest.approx([*(7 * t / (1 + 6 * t) for t in (1.0, 0.75, 0.5, 0.25)), 0.0], abs=1e-6)


def test_films_and_sizes_that_the_vae_cannot_hold_are_refused(place):
    with pytest.raises(UserError, match=r"1 more than a multiple of 4 for this VAE, not 7: set it to 5 or 9"):
        load_model(place, num_frames=7)
    with pytest.raises(UserError, match=r"multiples of 16 for this VAE, not 40 x 1280"):
        load_model(place, height=40)
