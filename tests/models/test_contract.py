"""What every adapter must do, on a random-weight pipeline of its family (a family added here is tested by being here)."""

from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from runs import metrics, settings
from test_trainer import SMALL

from neighbor_grpo.config import load_config
from neighbor_grpo.data import TextCache
from neighbor_grpo.methods import METHODS
from neighbor_grpo.models import load_model, take
from neighbor_grpo.models.lora import add_lora, save_lora, train_all
from neighbor_grpo.sampling import sample
from neighbor_grpo.trainer import Trainer

FAMILIES = {file.stem[7:]: import_module(file.stem) for file in sorted(Path(__file__).parent.glob("family_*.py"))}
PROMPTS = ["a red circle left of a blue square", "three green triangles"]
GUIDED = [name for name, family in FAMILIES.items() if family.GUIDED]


@pytest.fixture(scope="session")
def places(tmp_path_factory):
    """A saved pipeline of every family, built when it is first asked for."""

    class Places(dict):
        def __missing__(self, name):
            self[name] = tmp_path_factory.mktemp(name)
            FAMILIES[name].build().save_pretrained(self[name])
            return self[name]

    return Places()


@pytest.fixture(params=FAMILIES)
def family(request, places):
    return FAMILIES[request.param], places[request.param]


def drawn(model, noise, steps):
    return sample(model, model.encode(PROMPTS), noise[:, None], steps, "euler")[:, 0]


def noise_of(model):
    return torch.cat([model.noise(1, torch.Generator().manual_seed(seed)) for seed in (1, 2)])


@pytest.mark.parametrize("steps", [3, 5])
@pytest.mark.parametrize("size", [0, 1])
def test_sampling_equals_the_pipelines_call(family, size, steps):
    family, place = family
    height, width = family.SIZES[size]
    model = load_model(place, height=height, width=width)
    add_lora(model.transformer, 4, 8, family.LORA)  # untrained: it changes nothing
    ours = drawn(model, noise_of(model), steps)
    assert ours.shape == (2, 3, height, width) and float(ours.std()) > 1e-3
    theirs = family.call(DiffusionPipeline.from_pretrained(place), model, noise_of(model), PROMPTS, steps)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", GUIDED)
def test_classifier_free_guidance_equals_the_pipelines(name, places):
    family, place = FAMILIES[name], places[name]
    height, width = family.SIZES[0]
    plain, model = (load_model(place, height=height, width=width, cfg=cfg) for cfg in (1.0, family.GUIDED))
    ours = drawn(model, noise_of(model), 3)
    theirs = family.call(DiffusionPipeline.from_pretrained(place), model, noise_of(model), PROMPTS, 3)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert (ours - drawn(plain, noise_of(plain), 3)).abs().max() > 1e-3


def test_the_picture_does_not_depend_on_the_other_prompts_of_a_batch(family):
    _, place = family
    model = load_model(place)
    noise, together = noise_of(model), model.encode([*PROMPTS, "a long prompt " * 5])
    alone = model.encode(PROMPTS[1:])
    for a, b in zip(take(together, torch.tensor([1])), alone, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    v = model.velocity(noise, 0.7, take(together, torch.tensor([0, 1])))
    torch.testing.assert_close(v[1:], model.velocity(noise[1:], 0.7, alone), atol=1e-5, rtol=1e-4)


def test_velocity_by_the_disk_cache_is_velocity_without_it(family, tmp_path):
    _, place = family
    model, noise = load_model(place), None
    noise = noise_of(model)
    cache = TextCache(model, tmp_path, 1.0)
    cache(PROMPTS), TextCache(model, tmp_path, 1.0)  # written, then read by another
    cached = TextCache(load_model(place), tmp_path, 1.0)(PROMPTS)
    assert torch.equal(model.velocity(noise, 0.4, cached), model.velocity(noise, 0.4, model.encode(PROMPTS)))


def test_a_time_per_row_is_the_same_as_row_by_row(family):
    _, place = family
    model = load_model(place)
    cond, x = model.encode(PROMPTS), noise_of(model)
    together = model.velocity(x, torch.tensor([0.9, 0.3]), cond)
    single = [model.velocity(x[i : i + 1], t, take(cond, torch.tensor([i]))) for i, t in enumerate((0.9, 0.3))]
    torch.testing.assert_close(together, torch.cat(single), atol=1e-5, rtol=1e-4)


def test_times_run_from_one_to_zero(family):
    _, place = family
    times = load_model(place).times(6)
    assert times[0] == 1.0 and times[-1] == 0.0 and len(times) == 7
    assert all(a > b for a, b in pairwise(times))


@pytest.mark.parametrize("lora", [True, False])
def test_gradients_reach_what_is_trained_and_nothing_else(family, lora):
    family, place = family
    model = load_model(place)
    if lora:
        add_lora(model.transformer, 4, 4, family.LORA)
        for name, p in model.transformer.named_parameters():
            if "lora_B" in name:
                p.data.normal_()
    else:
        train_all(model.transformer)
    trained = {name for name, p in model.transformer.named_parameters() if p.requires_grad}
    assert all("lora" in name for name in trained) == lora
    model.velocity(noise_of(model), 0.5, model.encode(PROMPTS)).square().sum().backward()
    reached = {name for name, p in model.transformer.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    unreached = getattr(family, "UNUSED", set())  # what the architecture itself never uses
    assert {name for name in trained - reached if not any(part in name for part in unreached)} == set()
    assert reached <= trained


def test_a_saved_lora_gives_the_same_picture_in_a_fresh_pipeline(family, tmp_path):
    """Alpha unlike rank: it must survive."""
    family, place = family
    height, width = family.SIZES[0]
    model = load_model(place, height=height, width=width)
    add_lora(model.transformer, 4, 12, family.LORA)
    before = drawn(model, noise_of(model), 3)
    generator = torch.Generator().manual_seed(0)
    for p in model.transformer.parameters():
        if p.requires_grad:
            p.data.add_(0.3 * torch.randn(p.shape, generator=generator))
    ours = drawn(model, noise_of(model), 3)
    assert (ours - before).abs().max() > 0.003
    save_lora(model.pipe, model.transformer, tmp_path)
    pipe = DiffusionPipeline.from_pretrained(place)
    pipe.load_lora_weights(tmp_path)
    torch.testing.assert_close(ours, family.call(pipe, model, noise_of(model), PROMPTS, 3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_one_iteration_of_every_method(family, tmp_path, method):
    family, place = family
    height, width = family.SIZES[0]
    targets = f"model.lora.targets=[{', '.join(family.LORA)}]"
    more = (SMALL[method], f"model.height={height}", f"model.width={width}", targets, "iterations=1", "watch=[jpeg_size]")
    run = Trainer(load_config(None, settings(place, tmp_path, *more))).run()
    line = metrics(run)[1]
    assert line["ratio/noise_floor"] < 1e-4 and line["grad_norm"] > 0
