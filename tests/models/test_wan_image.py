"""Wan from a source picture: how it is encoded, cached, kept and guided."""

import family_wan
import family_wan_i2v
import pytest
import torch
from diffusers import DiffusionPipeline
from family_wan_i2v import IMAGES
from wan import PROMPTS, load, noise_of, train_lora

from neighbor_grpo.errors import UserError
from neighbor_grpo.flow.solvers import SOLVERS, solve
from neighbor_grpo.models.fingerprint import fingerprint
from neighbor_grpo.models.lora import load_lora, save_lora
from neighbor_grpo.models.sampling import sample
from neighbor_grpo.models.text_cache import TextCache
from neighbor_grpo.prompts.prompt import Prompt


def test_the_picture_is_seen_by_clip_and_begins_the_film_that_is_encoded(place, pictures):
    """Latents: the mask, a channel for each frame of four, and what the VAE makes of the picture and four grey frames."""
    model = load(place["i2v"])
    cond, pipe = model.encode(PROMPTS, pictures), model.pipe
    assert cond.latents.shape == (2, 4 + 4, 2, 4, 4) and cond.latents.dtype == torch.float32
    assert cond.latents[:, :4, 0].eq(1).all() and cond.latents[:, :4, 1].eq(0).all()
    film = torch.zeros(1, 3, 5, 32, 32)
    film[:, :, 0] = pipe.video_processor.preprocess(IMAGES[1], 32, 32)
    mean, std = (torch.tensor(v)[:, None, None, None] for v in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std))
    with torch.no_grad():
        latents = (pipe.vae.encode(film).latent_dist.mean[0] - mean) / std
        seen = pipe.image_encoder(**pipe.image_processor(IMAGES[1], return_tensors="pt"), output_hidden_states=True)
    torch.testing.assert_close(cond.latents[1, 4:], latents)
    torch.testing.assert_close(cond.clip[1:], seen.hidden_states[-2])
    assert (cond.clip[0] - cond.clip[1]).abs().max() > 1e-2
    assert load(place["i2v-A14B"]).encode(PROMPTS, pictures).clip.shape == (2, 0, 0)


def test_guidance_takes_the_text_away_and_leaves_the_picture(place, pictures):
    model = load(place["i2v"], cfg=4.0)
    cond = model.encode(PROMPTS, pictures)
    empty, true = model.unguided(cond), model.encode(["", ""], pictures)
    assert all(torch.equal(a, b) for a, b in zip(empty, true, strict=True)) and not torch.equal(empty.text, cond.text)


def test_cached_pictures_are_of_one_size_length_and_vae(place, pictures, tmp_path):
    """A cache of another size would have latents that do not fit; text is the same for every size."""
    prompts = [Prompt(text, {"image": str(picture)}) for text, (picture,) in zip(PROMPTS, pictures, strict=True)]
    for settings in ({"side": 32}, {"side": 48}, {"frames": 9}):
        model = load(place["i2v"], **settings)
        cond = TextCache(model, tmp_path, 1.0).encode(prompts)
        assert model.velocity(noise_of(model), 0.5, cond).shape == noise_of(model).shape
    texts = [load(place["t2v"], side=side) for side in (32, 48)]
    assert fingerprint(texts[0]) == fingerprint(texts[1])
    other = load(place["i2v"])
    before = fingerprint(other)
    other.vae.quant_conv.weight.data += 1
    assert fingerprint(other) != before


def test_pictures_that_are_missing_or_none_are_found(place, pictures, tmp_path):
    model = load(place["i2v"])
    with pytest.raises(UserError, match="give every prompt one"):
        model.encode(PROMPTS)
    with pytest.raises(UserError, match='leave "image" out'):
        load(place["t2v"]).encode(PROMPTS, pictures)
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(UserError, match=r"a\.png"):
        model.encode(PROMPTS[:1], [(tmp_path / "a.png",)])


@pytest.mark.parametrize("name", ["t2v-5B", "i2v-5B"])
@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_a_time_per_token_equals_the_pipelines(place, pictures, name, cfg):
    model, images = load(place[name], side=64, cfg=cfg), [pictures] if "i2v" in name else []
    ours = sample(model, model.encode(PROMPTS, *images), noise_of(model)[:, None], 3, "euler")[:, 0]
    call = family_wan_i2v.call if images else family_wan.call
    theirs = call(DiffusionPipeline.from_pretrained(place[name]), model, noise_of(model), PROMPTS, 3, *images)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_the_state_ends_on_the_picture_whatever_it_was_there(place, pictures):
    """v is that of the straight path, so it does not depend on what the first frame holds elsewhere."""
    model = load(place["i2v-5B"], side=64)
    cond, x = model.encode(PROMPTS, pictures), noise_of(model)
    assert cond.latents.shape == (2, 4, 1, 4, 4)
    other = torch.cat([x[:, :, :1] + 1, x[:, :, 1:]], dim=2)
    for name in SOLVERS.keys() - {"heun"}:
        ends = [solve(name, lambda x, t: model.velocity(x, t, cond), start, model.times(4)) for start in (x, other)]
        torch.testing.assert_close(ends[0], ends[1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ends[1][:, :, :1], cond.latents, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="choose another solver"):
        solve("heun", lambda x, t: model.velocity(x, t, cond), x, model.times(4))
    together = model.velocity(x, torch.tensor([0.9, 0.3]), cond)
    single = [model.velocity(x[i : i + 1], t, cond.take(torch.tensor([i]))) for i, t in enumerate((0.9, 0.3))]
    torch.testing.assert_close(together, torch.cat(single), atol=1e-5, rtol=1e-4)


def test_the_frame_that_is_kept_is_kept_in_half_precision(place, pictures):
    """To fp32, as the pipeline puts it there, not to the rounding of a state in bf16."""
    model = load(place["i2v-5B"], side=64, dtype=torch.bfloat16)
    cond = model.encode(PROMPTS, pictures)
    end = solve("euler", lambda x, t: model.velocity(x, t, cond), noise_of(model), model.times(4))
    torch.testing.assert_close(end[:, :, :1], cond.latents, atol=1e-5, rtol=1e-5)


def test_a_lora_that_leaves_the_pictures_layers_alone_is_loaded_again(place, pictures, tmp_path):
    """diffusers fills them with zeros, as for one that was trained without pictures."""
    model, fresh = load(place["i2v"]), load(place["i2v"])
    train_lora(model)
    save_lora(model.pipe, model.transformer, tmp_path)
    load_lora(fresh.transformer, tmp_path)
    cond, x = model.encode(PROMPTS, pictures), noise_of(model)
    torch.testing.assert_close(fresh.velocity(x, 0.5, cond), model.velocity(x, 0.5, cond))
