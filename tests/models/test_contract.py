"""What every family must do, on its random-weight pipeline: family_NAME.py in this folder is found by itself."""

import json
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from runs import metrics, settings
from test_trainer import SMALL

from neighbor_grpo.config import load_config
from neighbor_grpo.errors import UserError
from neighbor_grpo.methods import METHODS
from neighbor_grpo.models.attach import add_lora
from neighbor_grpo.models.lora import save_lora, train_all
from neighbor_grpo.models.meta_model import meta_model
from neighbor_grpo.models.policy import ModelPolicy
from neighbor_grpo.models.registry import load_model
from neighbor_grpo.models.sampling import sample
from neighbor_grpo.models.text_cache import TextCache, encode_prompts
from neighbor_grpo.prompts.prompt import Prompt
from neighbor_grpo.training.trainer import Trainer

FAMILIES = {file.stem[7:]: import_module(file.stem) for file in sorted(Path(__file__).parent.glob("family_*.py"))}
TEXTS = ["a red circle left of a blue square", "three green triangles", "a long prompt " * 5]
# Every method with a few families, and every family with a few methods; the other pairs are slow, as no code knows both.
PAIRS = [
    pytest.param(family, method, marks=() if (f - m) % len(FAMILIES) == 0 else pytest.mark.slow)
    for f, family in enumerate(FAMILIES)
    for m, method in enumerate(METHODS)
]
GUIDED = [name for name, family in FAMILIES.items() if family.GUIDED]


class Case:
    """A family, its saved pipeline, and pictures for its prompts to start from if it wants any."""

    def __init__(self, family, place: Path) -> None:
        self.family, self.place = family, place
        self.frames = {"num_frames": family.FRAMES} if hasattr(family, "FRAMES") else {}
        family.build().save_pretrained(place)
        self.prompts = [Prompt(text) for text in TEXTS]
        for image, prompt in zip(getattr(family, "IMAGES", []), self.prompts, strict=False):
            prompt.metadata["image"] = str(place / f"{TEXTS.index(prompt.text)}.png")
            image.save(prompt.metadata["image"])

    def settings(self, size: int = 0, **more) -> dict:
        height, width = self.family.SIZES[size]
        return {"height": height, "width": width, **self.frames, **more}

    def load(self, **settings):
        return load_model(self.place, **self.settings(**settings))

    def encode(self, model, *numbers: int):
        """Conditioning by the prompts of these numbers, by default the first two."""
        return encode_prompts(model, [self.prompts[n] for n in numbers or (0, 1)])

    def drawn(self, model, steps: int):
        """Of the first two prompts."""
        return sample(model, self.encode(model), noise_of(model)[:, None], steps, "euler")[:, 0]

    def called(self, model, steps: int, pipe=None):
        """The same by the pipeline's own __call__."""
        pipe, images = pipe or DiffusionPipeline.from_pretrained(self.place), [prompt.images for prompt in self.prompts[:2]]
        return self.family.call(pipe, model, noise_of(model), TEXTS[:2], steps, *([images] if images[0] else []))


def noise_of(model):
    return torch.cat([model.noise(1, torch.Generator().manual_seed(seed)) for seed in (1, 2)])


def pictures_of(case, size: int):
    """Random pictures [2, 3, H, W] or videos [2, T, 3, H, W]."""
    shape = 2, *case.frames.values(), 3, *case.family.SIZES[size]
    return torch.rand(shape, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="session")
def cases(tmp_path_factory):
    """Every family's, built when it is first asked for."""

    class Cases(dict):
        def __missing__(self, name):
            self[name] = Case(FAMILIES[name], tmp_path_factory.mktemp(name))
            return self[name]

    return Cases()


@pytest.fixture(params=FAMILIES)
def case(request, cases):
    return cases[request.param]


@pytest.mark.parametrize(("size", "steps"), [(0, 5), pytest.param(1, 3, marks=pytest.mark.slow)])
def test_sampling_equals_the_pipelines_call(case, size, steps):
    model = case.load(size=size)
    add_lora(model.transformer, 4, 8, case.family.LORA)  # untrained: it changes nothing
    ours = case.drawn(model, steps)
    assert ours.shape == (2, *case.frames.values(), 3, *case.family.SIZES[size]) and float(ours.std()) > 1e-3
    torch.testing.assert_close(ours, case.called(model, steps), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", GUIDED)
def test_classifier_free_guidance_equals_the_pipelines(name, cases):
    case = cases[name]
    plain, model = (case.load(cfg=cfg) for cfg in (1.0, case.family.GUIDED))
    ours = case.drawn(model, 3)
    torch.testing.assert_close(ours, case.called(model, 3), atol=1e-4, rtol=0)
    assert (ours - case.drawn(plain, 3)).abs().max() > 1e-3
    x, (own, cond) = noise_of(model), (case.encode(each, 0, 1) for each in (plain, model))
    without = ModelPolicy(model, cond, guided=False)(x, 0.4)  # as forward-process methods train
    torch.testing.assert_close(without, plain.velocity(x, 0.4, own), atol=1e-5, rtol=1e-4)
    assert (without - ModelPolicy(model, cond)(x, 0.4)).abs().max() > 1e-4


def test_the_picture_does_not_depend_on_the_other_prompts_of_a_batch(case):
    model = case.load()
    noise, together, alone = noise_of(model), case.encode(model, 0, 1, 2), case.encode(model, 1)
    for a, b in zip(together.take(torch.tensor([1])), alone, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    v = model.velocity(noise, 0.7, together.take(torch.tensor([0, 1])))
    torch.testing.assert_close(v[1:], model.velocity(noise[1:], 0.7, alone), atol=1e-5, rtol=1e-4)


def test_velocity_by_the_disk_cache_is_velocity_without_it(case, tmp_path):
    model = case.load()
    noise, cache = noise_of(model), TextCache(model, tmp_path, 1.0)
    cache.encode(case.prompts[:2])  # written, then read by another
    cached = TextCache(case.load(), tmp_path, 1.0).encode(case.prompts[:2])
    assert torch.equal(model.velocity(noise, 0.4, cached), model.velocity(noise, 0.4, case.encode(model)))


def test_a_time_per_row_is_the_same_as_row_by_row(case):
    model = case.load()
    cond, x = case.encode(model), noise_of(model)
    together = model.velocity(x, torch.tensor([0.9, 0.3]), cond)
    single = [model.velocity(x[i : i + 1], t, cond.take(torch.tensor([i]))) for i, t in enumerate((0.9, 0.3))]
    torch.testing.assert_close(together, torch.cat(single), atol=1e-5, rtol=1e-4)


def test_times_run_from_one_to_zero(case):
    times = case.load().times(6)
    assert times[0] == 1.0 and times[-1] == 0.0 and len(times) == 7
    assert all(a > b for a, b in pairwise(times))


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16])
def test_without_weights_there_are_the_same_shapes_and_types(case, dtype):
    model, bare = load_model(case.place, dtype=dtype, **case.settings()), meta_model(case.place, dtype, **case.settings())
    true, blank = case.encode(model), bare.blank(2)
    assert [(c.shape, c.dtype) for c in blank] == [(c.shape, c.dtype) for c in true]
    x, t = bare.noise(2, torch.Generator()), torch.tensor([0.9, 0.3])
    v, w = bare.velocity(x, t, blank), model.velocity(noise_of(model), t, true)
    assert x.is_meta and (v.shape, v.dtype) == (w.shape, w.dtype)


@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_bfloat16_is_near_float32(case, full):
    """With a guidance that bfloat16 represents: a pipeline rounds it, and so does its family."""
    guided = {"guidance_scale": 4.0} if case.load().guidance_scale else {}
    exact, model = (case.load(dtype=kind, **guided) for kind in (torch.float32, torch.bfloat16))
    if full:
        train_all(model.transformer)
    x = noise_of(exact)
    v, near = (one.velocity(x, 0.6, case.encode(one)) for one in (exact, model))
    assert near.dtype == torch.float32 and (near - v).norm() < 0.05 * v.norm()


def test_without_guidance_the_text_is_empty_and_source_pictures_stay(case):
    model, images = case.load(), [prompt.images for prompt in case.prompts[:2]]
    unguided, empty = model.unguided(case.encode(model)), model.encode([model.empty_prompt] * 2, images)
    for a, b in zip(unguided, empty, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert any(not torch.equal(a, b) for a, b in zip(unguided, case.encode(model), strict=True))


@pytest.mark.parametrize("size", [0, 1])
def test_pictures_become_the_latents_that_decode_to_them(case, size):
    """x0 has shape and type of noise; the VAE's own latents of x0 are its posterior mean, so nothing else is scaled."""
    model, images = case.load(size=size), pictures_of(case, size)
    x0, noise = model.from_image(images), noise_of(model)
    assert (x0.shape, x0.dtype, x0.device) == (noise.shape, noise.dtype, noise.device)
    video = images.transpose(1, 2) if case.frames else images
    with torch.no_grad():
        z = model.to_vae(x0)
        video = video[:, :, None] if z.ndim > video.ndim else video  # a VAE of videos, which takes a picture as a frame
        mean = model.vae.encode(2 * video - 1).latent_dist.mean
        decoded = model.vae.decode(mean).sample / 2 + 0.5
    torch.testing.assert_close(z, mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.from_vae(model.to_vae(noise)), noise, atol=1e-5, rtol=1e-5)
    decoded = decoded.transpose(1, 2) if case.frames else decoded.view_as(images)
    torch.testing.assert_close(model.decode(x0), decoded.clamp(0, 1), atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="set height, width"):
        model.from_image(images[..., :-1])


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if hasattr(family, "latents")])
def test_latents_of_pictures_are_the_pipelines(name, cases):
    case = cases[name]
    model, images = case.load(size=1), pictures_of(case, 1)
    theirs = case.family.latents(model.pipe, 2 * images - 1)
    torch.testing.assert_close(model.from_image(images), theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("lora", [True, False])
def test_gradients_reach_what_is_trained_and_nothing_else(case, lora):
    model = case.load()
    if lora:
        add_lora(model.transformer, 4, 4, case.family.LORA)
        for name, p in model.transformer.named_parameters():
            if "lora_B" in name:
                p.data.normal_()
    else:
        train_all(model.transformer)
    trained = {name for name, p in model.transformer.named_parameters() if p.requires_grad}
    assert all("lora" in name for name in trained) == lora
    model.velocity(noise_of(model), torch.tensor([0.9, 0.3]), case.encode(model)).square().sum().backward()
    reached = {name for name, p in model.transformer.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    unreached = getattr(case.family, "UNUSED", set())  # what the architecture itself never uses
    assert {name for name in trained - reached if not any(part in name for part in unreached)} == set()
    assert reached <= trained


def test_a_saved_lora_gives_the_same_picture_in_a_fresh_pipeline(case, tmp_path):
    """Alpha unlike rank: it must survive."""
    model = case.load()
    add_lora(model.transformer, 4, 12, case.family.LORA)
    before = case.drawn(model, 3)
    generator = torch.Generator().manual_seed(0)
    for p in model.transformer.parameters():
        if p.requires_grad:
            p.data.add_(0.3 * torch.randn(p.shape, generator=generator))
    ours = case.drawn(model, 3)
    assert (ours - before).abs().max() > 0.003
    save_lora(model.pipe, model.transformer, tmp_path)
    pipe = DiffusionPipeline.from_pretrained(case.place)
    getattr(case.family, "load_lora", lambda pipe, directory: pipe.load_lora_weights(directory))(pipe, tmp_path)
    torch.testing.assert_close(ours, case.called(model, 3, pipe), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("family", "method"), PAIRS)
def test_one_iteration_of_every_method(cases, tmp_path, family, method):
    case = cases[family]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt.text, **prompt.metadata}) + "\n" for prompt in case.prompts))
    more = [
        *(f"model.{key}={value}" for key, value in case.settings().items()),
        f"prompts.path={file}",
        f"prompts.eval_path={file}",
        SMALL[method],
        f"model.lora.targets=[{', '.join(case.family.LORA)}]",
        "iterations=1",
        "watch=[jpeg_size]",
        "evaluate.prompts=1",
        "evaluate.seeds=1",
        "evaluate.num_steps=2",
        "evaluate.solver=euler",
    ]
    run = Trainer(load_config(None, settings(case.place, tmp_path, *more))).run()
    line = metrics(run)[1]
    assert line.get("ratio/noise_floor", 0.0) < 1e-4 and line["grad_norm"] > 0
