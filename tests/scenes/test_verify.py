import numpy as np
import pytest
import torch
from scipy import ndimage

from neighbor_grpo.errors import UserError
from neighbor_grpo.worlds.scenes.render import coverage, render
from neighbor_grpo.worlds.scenes.verify import BOLD, FOREGROUND, MIN_AREA, find, scenes, scenes_sparse, scenes_strict
from neighbor_grpo.worlds.scenes.world import (
    BACKGROUND,
    COLOURS,
    FAMILIES,
    OBJECTS,
    SHAPES,
    SIZE,
    Thing,
    all_specs,
    parse,
    sample_scene,
    sample_specs,
)


def picture(*things):
    return torch.from_numpy(render(things))[None]


def verdict(prompt, *things):
    return scenes_strict(picture(*things), [prompt])[0]


LEFT = Thing("red", "circle", 18, 32, 8)
RIGHT = Thing("blue", "square", 46, 32, 8)


def test_right_on_the_renderers_own_pictures():
    """800 random pictures, noisy shades: at least 99 % yes to their prompt and no to another's."""
    rng = np.random.default_rng(1)
    specs = sample_specs(400, rng, held_out=False) + sample_specs(400, rng, held_out=True)
    images = torch.from_numpy(np.stack([render(sample_scene(spec, rng), rng) for spec in specs]))
    prompts = [spec.prompt for spec in specs]
    assert np.mean(scenes_strict(images, prompts)) >= 0.99
    assert np.mean(scenes_sparse(images, prompts)) >= 0.99
    others = [other for other in np.roll(np.array(specs, object), 1)]
    differ = [i for i, (a, b) in enumerate(zip(specs, others, strict=True)) if set(a.objects) != set(b.objects)]
    assert np.mean(scenes_strict(images[differ], [others[i].prompt for i in differ])) <= 0.01


def test_fits_and_colours_are_those_of_their_definitions():
    """Each component alone, in the whole picture: overlap with the ideal shapes there, and the colour of every pixel."""
    rng = np.random.default_rng(2)
    images = [render(sample_scene(spec, rng), rng) for spec in sample_specs(24, rng, held_out=False)]
    images = [0.6 * image + 0.4 * np.roll(image, rng.integers(-40, 40, 2), (1, 2)) for image in images]  # cut by the border
    images = [np.clip(image + rng.normal(0, 0.1, image.shape), 0, 1).astype(np.float32) for image in images]
    background, paints = np.array(BACKGROUND), np.array(list(COLOURS.values())) - np.array(BACKGROUND)
    seen = 0
    for image in images:
        pixels = np.moveaxis(image, 0, -1) - background
        labels, count = ndimage.label(np.abs(pixels).max(-1) > FOREGROUND)
        masks = [mask for mask in (labels == n for n in range(1, count + 1)) if mask.sum() >= MIN_AREA]
        for mask, thing in zip(masks, find(image), strict=True):
            rows, columns = np.nonzero(mask)
            assert (thing.x, thing.y) == pytest.approx((columns.mean() + 0.5, rows.mean() + 0.5))
            nearest = []
            for paint in pixels[mask]:
                amounts = [np.clip(paint @ one / (one @ one), 0, 1) for one in paints]
                nearest.append(np.argmin([((paint - a * one) ** 2).sum() for a, one in zip(amounts, paints, strict=True)]))
            share = np.bincount(nearest, minlength=len(COLOURS)) / mask.sum()
            assert list(thing.purity.values()) == pytest.approx(share, abs=1.5 / mask.sum())
            if 2 * thing.radius > min(thing.x, thing.y, SIZE - thing.x, SIZE - thing.y):
                continue  # the border may cut an ideal shape
            for shape, fit in thing.fit.items():
                ideal = coverage(shape, *(round(4 * at) / 4 for at in (thing.x, thing.y, thing.radius))) > 0.5
                assert fit == pytest.approx((mask & ideal).sum() / (mask | ideal).sum(), abs=1e-3)
                seen += 1
    assert seen > 40


@pytest.mark.parametrize("kind", OBJECTS)
def test_every_kind_is_recognised_at_every_size(kind):
    for radius in (5, 7, 10, 13):
        (found,) = find(render((Thing(*kind, 31.3, 30.6, radius),)))
        assert found.kind == kind
        assert found.radius == pytest.approx(radius, rel=0.1)
        assert (found.x, found.y) == pytest.approx((31.3, 30.6), abs=0.5)


def test_says_no_to_blank_noise_wrong_count_colour_shape_relation_and_surplus():
    blank, noise = picture(), torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for prompt in ("a red circle", "a red circle left of a blue square", "two red circles"):
        for image in (blank, noise, torch.zeros(1, 3, 64, 64)):
            assert scenes_strict(image, [prompt]) == [0.0]
            assert scenes(image, [prompt])[0] < 0.1
    assert verdict("a red circle left of a blue square", LEFT, RIGHT) == 1
    assert verdict("a red circle right of a blue square", LEFT, RIGHT) == 0
    assert verdict("a red circle above a blue square", LEFT, RIGHT) == 0
    assert verdict("a blue square right of a red circle", LEFT, RIGHT) == 1
    assert verdict("a red circle", LEFT, RIGHT) == 0
    assert verdict("a red circle and a blue square", LEFT) == 0
    assert verdict("two red circles", LEFT) == 0
    assert verdict("an orange circle", LEFT) == 0
    assert verdict("a red square", LEFT) == 0


def test_says_no_to_merged_shapes():
    one, two = Thing("red", "circle", 26, 32, 8), Thing("red", "circle", 36, 32, 8)
    assert verdict("two red circles", one, two) == 0
    assert verdict("a red circle", one, two) == 0
    touching = Thing("red", "circle", 27, 32, 8), Thing("blue", "square", 39, 32, 8)
    assert verdict("a red circle left of a blue square", *touching) == 0


def test_a_colour_halfway_and_a_shape_cut_off_are_nothing():
    half = picture(LEFT)
    right, blue = half[:, :, :, 18:], torch.tensor([0.14, 0.37, 0.86])[None, :, None, None]
    half[:, :, :, 18:] = torch.where(right < 0.9, blue, right)
    assert scenes_strict(half, ["a red circle"]) == [0.0]
    cut = picture(LEFT)
    cut[:, :, 33:] = picture()[:, :, 33:]
    assert scenes_strict(cut, ["a red circle"]) == [0.0]


def test_graded_score_by_hand():
    """Ideal squares with edges on pixel borders: fit 1, purity 1, so the score is the fourth power of their boldness."""
    for half in (6, 8, 11):
        square = Thing("green", "square", 32, 32, 2 * half / np.pi**0.5)
        assert scenes(picture(square), ["a green square"])[0] == pytest.approx(min(1, square.radius / BOLD[1]) ** 4, rel=0.02)
    pair = [Thing("green", "square", x, 32, 12 / np.pi**0.5) for x in (16, 48)]
    assert scenes(picture(*pair), ["two green squares"])[0] == pytest.approx((pair[0].radius / BOLD[2]) ** 4, rel=0.02)


def test_graded_score_rewards_what_it_says():
    def score(prompt, *things):
        return scenes(picture(*things), [prompt])[0]

    prompt = "a red circle left of a blue square"
    whole = score(prompt, LEFT, RIGHT)
    bigger = score(prompt, Thing("red", "circle", 18, 32, 10), Thing("blue", "square", 46, 32, 10))
    oblique = score(prompt, Thing("red", "circle", 18, 18, 8), Thing("blue", "square", 46, 46, 8))
    surplus = score(prompt, LEFT, RIGHT, Thing("green", "star", 32, 10, 5))
    swapped = score(prompt, Thing("red", "circle", 46, 32, 8), Thing("blue", "square", 18, 32, 8))
    missing = score(prompt, LEFT)
    wrong = score(prompt, LEFT, Thing("blue", "triangle", 46, 32, 8))
    assert bigger > whole > oblique > swapped > 0
    assert surplus == pytest.approx(whole * 2 / 3, rel=1e-6)
    assert whole > wrong > missing


def test_sparse_score_counts_constraints():
    prompt = "a red circle left of a blue square"
    assert scenes_sparse(picture(LEFT, RIGHT), [prompt]) == [1.0]
    assert scenes_sparse(picture(LEFT), [prompt])[0] == pytest.approx(2 / 4)  # circle, nothing else
    assert scenes_sparse(picture(RIGHT, Thing("red", "circle", 46, 12, 8)), [prompt])[0] == pytest.approx(3 / 4)


def test_pictures_of_another_size_are_refused():
    with pytest.raises(UserError, match="64"):
        scenes(torch.zeros(1, 3, 32, 32), ["a red circle"])


def test_every_prompt_reads_back_as_itself():
    specs = all_specs()
    assert len(specs) == 24 + 72 + 552 + 2208
    assert len({spec.prompt for spec in specs}) == len(specs)
    assert all(parse(spec.prompt) == spec for spec in specs)
    with pytest.raises(UserError, match="three green triangles"):
        parse("a photo of a dog")


def test_held_out_combinations_appear_in_no_order_and_no_relation():
    train = {tuple(sorted(spec.objects)) for spec in sample_specs(3000, np.random.default_rng(0), held_out=False)}
    held = {tuple(sorted(spec.objects)) for spec in sample_specs(3000, np.random.default_rng(0), held_out=True)}
    assert not train & held
    assert {spec.family for spec in sample_specs(300, np.random.default_rng(0), held_out=True)} == set(FAMILIES)


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_radius_is_equal_area(shape):
    assert coverage(shape, 32, 32, 11).sum() == pytest.approx(np.pi * 121, rel=0.01)


def test_scenes_meet_their_relation_and_keep_apart():
    rng = np.random.default_rng(0)
    for spec in sample_specs(300, rng, held_out=False):
        things = sample_scene(spec, rng)
        assert tuple((thing.colour, thing.shape) for thing in things) == spec.objects
        for i, a in enumerate(things):
            assert min(a.x, a.y, 64 - a.x, 64 - a.y) > a.radius * 0.9
            assert all(np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius for b in things[:i])
