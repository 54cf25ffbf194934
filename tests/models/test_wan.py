from types import SimpleNamespace

import family_wan
import family_wan_experts
import family_wan_i2v
import pytest
import torch
from diffusers import DiffusionPipeline, UniPCMultistepScheduler
from family_wan_i2v import IMAGES
from runs import settings

from neighbor_grpo.config import load_config
from neighbor_grpo.errors import UserError
from neighbor_grpo.flow.solvers import SOLVERS, solve
from neighbor_grpo.models.lora import add_lora, load_all, load_lora, lora_off, save_all, save_lora
from neighbor_grpo.models.quantization import compile_blocks
from neighbor_grpo.models.registry import load_model, take
from neighbor_grpo.models.sampling import sample
from neighbor_grpo.models.text_cache import TextCache
from neighbor_grpo.prompts.reading import Prompt
from neighbor_grpo.run.export import export
from neighbor_grpo.run.weights import load_trained
from neighbor_grpo.training.learner import Learner
from neighbor_grpo.training.trainer import Trainer

PROMPTS = ["a red circle left of a blue square", "three green triangles"]
BUILD = {
    "t2v": family_wan.build,
    "i2v": family_wan_i2v.build,
    "experts": family_wan_experts.build,
    "t2v-5B": lambda: family_wan.build(expand_timesteps=True),
    "i2v-5B": lambda: family_wan_i2v.build("2.2-TI2V-5B"),
    "i2v-A14B": lambda: family_wan_i2v.build("2.2-A14B"),
    "unipc": lambda: family_wan.build(
        UniPCMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=5.0,
            solver_order=1,
            disable_corrector=[*range(50)],
        )
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    class Places(dict):
        def __missing__(self, name):
            self[name] = tmp_path_factory.mktemp(name)
            BUILD[name]().save_pretrained(self[name])
            return self[name]

    return Places()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    paths = [tmp_path_factory.mktemp("pictures") / f"{n}.png" for n in range(2)]
    for image, path in zip(IMAGES, paths, strict=False):
        image.save(path)
    return paths


def load(place, side=32, frames=5, **drawing):
    return load_model(place, height=side, width=side, num_frames=frames, **drawing)


def noise_of(model, n=2):
    return model.noise(n, torch.Generator().manual_seed(3))


# -------------------------------------------------------------------- text and pictures


def test_text_is_padded_with_zeros_and_a_long_one_is_cut(place):
    model, short = load(place["t2v"]), load(place["t2v"], max_sequence_length=6)
    (text,) = model.encode(PROMPTS)
    assert text.shape == (2, 512, 24)
    assert [int(row.any(-1).sum()) for row in text] == [9, 4] and not text[0, 9:].any()  # words and the end
    assert short.encode(PROMPTS).text.shape == (2, 6, 24) and short.encode(PROMPTS).text[0].any(-1).all()


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
    prompts = [Prompt(text, {"image": str(picture)}) for text, picture in zip(PROMPTS, pictures, strict=True)]
    for drawing in ({"side": 32}, {"side": 48}, {"frames": 9}):
        model = load(place["i2v"], **drawing)
        cond = TextCache(model, tmp_path, 1.0)(prompts)
        assert model.velocity(noise_of(model), 0.5, cond).shape == noise_of(model).shape
    texts = [load(place["t2v"], side=side) for side in (32, 48)]
    assert texts[0].fingerprint == texts[1].fingerprint
    other = load(place["i2v"])
    fingerprint = other.fingerprint
    other.vae.quant_conv.weight.data += 1
    assert other.fingerprint != fingerprint


def test_pictures_that_are_missing_or_none_are_found(place, pictures, tmp_path):
    model = load(place["i2v"])
    with pytest.raises(UserError, match="give every prompt one"):
        model.encode(PROMPTS)
    with pytest.raises(UserError, match="takes no first picture"):
        load(place["t2v"]).encode(PROMPTS, pictures)
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(UserError, match=r"a\.png is no picture"):
        model.encode(PROMPTS[:1], [tmp_path / "a.png"])


# -------------------------------------------------------------------- time


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


# -------------------------------------------------------------------- the frame that is kept


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
    single = [model.velocity(x[i : i + 1], t, take(cond, torch.tensor([i]))) for i, t in enumerate((0.9, 0.3))]
    torch.testing.assert_close(together, torch.cat(single), atol=1e-5, rtol=1e-4)


def test_the_frame_that_is_kept_is_kept_in_half_precision(place, pictures):
    """To fp32, as the pipeline puts it there, not to the rounding of a state in bf16."""
    model = load(place["i2v-5B"], side=64, dtype=torch.bfloat16)
    cond = model.encode(PROMPTS, pictures)
    end = solve("euler", lambda x, t: model.velocity(x, t, cond), noise_of(model), model.times(4))
    torch.testing.assert_close(end[:, :, :1], cond.latents, atol=1e-5, rtol=1e-5)


# -------------------------------------------------------------------- two experts


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
    add_lora(model.transformer, 2, 6, family_wan.LORA)
    with torch.no_grad():
        for weight in model.transformer.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * weight.requires_grad
    taught = velocities(model)
    assert all((a - b).abs().max() > 1e-2 for a, b in zip(plain, taught, strict=True))
    with lora_off(model.transformer):
        torch.testing.assert_close(velocities(model), plain)
    weights = {name: 2 * weight for name, weight in model.transformer.named_parameters() if weight.requires_grad}
    for other, directory in ((None, tmp_path / "a"), (weights, tmp_path / "b")):
        save_lora(model.pipe, model.transformer, directory, other)
        fresh = load(place["experts"])
        load_lora(fresh.pipe, fresh.transformer, directory)
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
    add_lora(single.transformer, 2, 2, family_wan.LORA)
    save_lora(single.pipe, single.transformer, tmp_path)
    with pytest.raises(UserError, match="2 experts"):
        load_lora(model.pipe, model.transformer, tmp_path)


def test_a_run_of_two_experts_is_exported_whole(place, tmp_path):
    drawing = ("model.height=32", "model.width=32", "model.num_frames=5", "ema=null", "optimizer.lr=0.1", "iterations=1")
    for kind in ("lora", "all"):
        (tmp_path / kind).mkdir()
        lora = () if kind == "lora" else ("model.lora=null",)
        run = Trainer(load_config(None, settings(place["experts"], tmp_path / kind, *drawing, *lora))).run()
        ours = velocities(load_trained(None, run, "cpu").model)
        assert all((a - b).abs().max() > 1e-3 for a, b in zip(ours, velocities(load(place["experts"])), strict=True))
        export(run, "merged", tmp_path / kind / "merged")
        torch.testing.assert_close(velocities(load(tmp_path / kind / "merged")), ours, atol=1e-4, rtol=1e-4)
    export(tmp_path / "lora" / "run", "diffusers", tmp_path / "out")
    fresh = load(place["experts"])
    family_wan_experts.load_lora(fresh.pipe, tmp_path / "out" / "lora")
    torch.testing.assert_close(velocities(fresh), velocities(load_trained(None, tmp_path / "lora" / "run", "cpu").model))
    with pytest.raises(UserError, match="--format diffusers or merged"):
        export(tmp_path / "lora" / "run", "comfyui", tmp_path / "comfyui")


def test_two_experts_are_not_divided(place):
    with pytest.raises(UserError, match="not divided by FSDP2"):
        Learner(load(place["experts"]), load_config(None, []), SimpleNamespace(is_fsdp2=True))


def test_a_pipeline_without_its_second_expert_is_refused(tmp_path):
    pipe = family_wan_experts.build()
    pipe.transformer_2 = None
    pipe.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="one is missing"):
        load(tmp_path)


# -------------------------------------------------------------------- the rest


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


def test_a_lora_that_leaves_the_pictures_layers_alone_is_loaded_again(place, pictures, tmp_path):
    """diffusers fills them with zeros, as for one that was trained without pictures."""
    model, fresh = load(place["i2v"]), load(place["i2v"])
    add_lora(model.transformer, 2, 6, family_wan.LORA)
    with torch.no_grad():
        for weight in model.transformer.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * weight.requires_grad
    save_lora(model.pipe, model.transformer, tmp_path)
    load_lora(fresh.pipe, fresh.transformer, tmp_path)
    cond, x = model.encode(PROMPTS, pictures), noise_of(model)
    torch.testing.assert_close(fresh.velocity(x, 0.5, cond), model.velocity(x, 0.5, cond))


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
