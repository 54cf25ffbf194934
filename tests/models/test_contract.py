"""What every adapter must do, on a random-weight pipeline of its family (a family added here is tested by being here)."""

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
from neighbor_grpo.methods import METHODS
from neighbor_grpo.models.lora import add_lora, save_lora, train_all
from neighbor_grpo.models.meta_model import skeleton
from neighbor_grpo.models.registry import load_model, take
from neighbor_grpo.models.sampling import sample
from neighbor_grpo.models.text_cache import TextCache, encoded
from neighbor_grpo.prompts.reading import Prompt
from neighbor_grpo.training.trainer import Trainer

FAMILIES = {file.stem[7:]: import_module(file.stem) for file in sorted(Path(__file__).parent.glob("family_*.py"))}
TEXTS = ["a red circle left of a blue square", "three green triangles", "a long prompt " * 5]
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
            image.save(prompt.image)

    def drawing(self, size: int = 0, **more) -> dict:
        height, width = self.family.SIZES[size]
        return {"height": height, "width": width, **self.frames, **more}

    def load(self, **drawing):
        return load_model(self.place, **self.drawing(**drawing))

    def encode(self, model, *numbers: int):
        """Conditioning by the prompts of these numbers, by default the first two."""
        return encoded(model, [self.prompts[n] for n in numbers or (0, 1)])

    def drawn(self, model, steps: int):
        """Of the first two prompts."""
        return sample(model, self.encode(model), noise_of(model)[:, None], steps, "euler")[:, 0]

    def called(self, model, steps: int, pipe=None):
        """The same by the pipeline's own __call__."""
        pipe, images = pipe or DiffusionPipeline.from_pretrained(self.place), [prompt.image for prompt in self.prompts[:2]]
        return self.family.call(pipe, model, noise_of(model), TEXTS[:2], steps, *([images] if images[0] else []))


def noise_of(model):
    return torch.cat([model.noise(1, torch.Generator().manual_seed(seed)) for seed in (1, 2)])


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


@pytest.mark.parametrize("steps", [3, 5])
@pytest.mark.parametrize("size", [0, 1])
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


def test_the_picture_does_not_depend_on_the_other_prompts_of_a_batch(case):
    model = case.load()
    noise, together, alone = noise_of(model), case.encode(model, 0, 1, 2), case.encode(model, 1)
    for a, b in zip(take(together, torch.tensor([1])), alone, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    v = model.velocity(noise, 0.7, take(together, torch.tensor([0, 1])))
    torch.testing.assert_close(v[1:], model.velocity(noise[1:], 0.7, alone), atol=1e-5, rtol=1e-4)


def test_velocity_by_the_disk_cache_is_velocity_without_it(case, tmp_path):
    model = case.load()
    noise, cache = noise_of(model), TextCache(model, tmp_path, 1.0)
    cache(case.prompts[:2]), TextCache(model, tmp_path, 1.0)  # written, then read by another
    cached = TextCache(case.load(), tmp_path, 1.0)(case.prompts[:2])
    assert torch.equal(model.velocity(noise, 0.4, cached), model.velocity(noise, 0.4, case.encode(model)))


def test_a_time_per_row_is_the_same_as_row_by_row(case):
    model = case.load()
    cond, x = case.encode(model), noise_of(model)
    together = model.velocity(x, torch.tensor([0.9, 0.3]), cond)
    single = [model.velocity(x[i : i + 1], t, take(cond, torch.tensor([i]))) for i, t in enumerate((0.9, 0.3))]
    torch.testing.assert_close(together, torch.cat(single), atol=1e-5, rtol=1e-4)


def test_times_run_from_one_to_zero(case):
    times = case.load().times(6)
    assert times[0] == 1.0 and times[-1] == 0.0 and len(times) == 7
    assert all(a > b for a, b in pairwise(times))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_weights_there_are_the_same_shapes_and_types(case, dtype):
    model, bare = load_model(case.place, dtype=dtype, **case.drawing()), skeleton(case.place, dtype, **case.drawing())
    true, blank = case.encode(model), bare.blank(2)
    assert [(c.shape, c.dtype) for c in blank] == [(c.shape, c.dtype) for c in true]
    x, t = bare.noise(2, torch.Generator()), torch.tensor([0.9, 0.3])
    v, w = bare.velocity(x, t, blank), model.velocity(noise_of(model), t, true)
    assert x.is_meta and (v.shape, v.dtype) == (w.shape, w.dtype)


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


@pytest.mark.parametrize("method", METHODS)
def test_one_iteration_of_every_method(case, tmp_path, method):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt.text, **prompt.metadata}) + "\n" for prompt in case.prompts))
    more = [
        *(f"model.{key}={value}" for key, value in case.drawing().items()),
        f"prompts.path={file}",
        f"prompts.eval_path={file}",
        SMALL[method],
        f"model.lora.targets=[{', '.join(case.family.LORA)}]",
        "iterations=1",
        "watch=[jpeg_size]",
    ]
    run = Trainer(load_config(None, settings(case.place, tmp_path, *more))).run()
    line = metrics(run)[1]
    assert line["ratio/noise_floor"] < 1e-4 and line["grad_norm"] > 0
