"""The world of words: its prompts, its renderer, its measures, and what is said where its model was not made."""

import numpy as np
import pytest
import torch

from neighbor_grpo.cli import main
from neighbor_grpo.models.bundled import BUNDLED
from neighbor_grpo.prompts.reading import read_prompts
from neighbor_grpo.rewards.ocr import Ocr
from neighbor_grpo.rewards.registry import REWARDS
from neighbor_grpo.worlds.words.distance import words_distance
from neighbor_grpo.worlds.words.pretrain import pictures
from neighbor_grpo.worlds.words.render import render, render_all
from neighbor_grpo.worlds.words.world import BACKGROUND, COLOURS, Spec, parse, sample_specs


@pytest.fixture(scope="module")
def drawn():
    """Prompts of held-out words, and two true pictures of each, [P, 2, 3, 32, 96]."""
    rng = np.random.default_rng(5)
    specs = sample_specs(24, rng, held_out=True)
    pictures = torch.from_numpy(np.stack([[render(spec, rng) for _ in range(2)] for spec in specs]))
    return [spec.prompt for spec in specs], pictures


def test_held_out_words_are_in_no_training_prompt():
    train, held_out = ([parse(prompt.text) for prompt in read_prompts("words", side)] for side in (False, True))
    assert (len(train), len(held_out)) == (1024, 256)
    assert not any(spec.held_out for spec in train) and all(spec.held_out for spec in held_out)
    assert not {spec.text.lower() for spec in train} & {spec.text.lower() for spec in held_out}
    drawn = sample_specs(300, np.random.default_rng(0), held_out=False)
    assert not any(spec.held_out for spec in drawn) and drawn == sample_specs(300, np.random.default_rng(0), held_out=False)
    assert Spec("KATO", "red").held_out == Spec("kato", "blue").held_out
    assert all(parse(spec.prompt) == spec for spec in drawn)


def test_the_whole_word_is_inside_in_its_colour():
    for seed, colour in enumerate(COLOURS):
        specs = [Spec("WAZUW", colour), Spec("gip", colour)]
        pictures = render_all(specs, np.random.SeedSequence(seed))
        assert np.array_equal(pictures, render_all(specs, np.random.SeedSequence(seed)))
        inner = np.zeros((32, 96), bool)
        inner[2:-2, 2:-2] = True
        assert (pictures[..., ~inner] == round(255 * BACKGROUND)).all()
        for picture in pictures:
            darkest = picture.reshape(3, -1)[:, picture.astype(int).sum(0).argmin()]
            assert np.abs(darkest / 255 - COLOURS[colour]).max() < 0.01


def test_the_picture_varies_as_much_as_it_is_told_to():
    spec = Spec("KATO", "red")
    seeds = [np.random.SeedSequence(n) for n in range(12)]
    drawn = {variety: len({render_all([spec], seed, [variety]).tobytes() for seed in seeds}) for variety in (0.0, 0.1, 1.0)}
    assert drawn[0.0] == 1 < drawn[0.1] <= drawn[1.0] == 12


def test_the_recipe_draws_easy_pictures_first():
    prompts, images = pictures(50, np.random.default_rng(3))
    same = [render(parse(prompt), np.random.default_rng(0), 0.0) for prompt in prompts]
    far = [np.abs(image.numpy() / 255 - plain).mean() for image, plain in zip(images, same, strict=True)]
    assert max(far[:20]) < 0.002 < 0.02 < np.mean(far[40:])  # bytes are rounded


@pytest.mark.parametrize(
    "prompt",
    ['the word "KATJO" in red', 'the word "KAto" in red', 'the word "ab" in red', 'the word "KATO" in pink', "a red circle"],
)
def test_what_is_no_word_of_it_is_refused(prompt, tmp_path, capsys):
    assert main(["words", "render", 'the word "KATO" in red', prompt, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and ("letters" in error or "colours" in error)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- measures


def test_words_exact_reads_true_pictures_and_no_others(drawn):
    prompts, pictures = drawn
    exact = REWARDS["words_exact"]
    assert np.mean(exact(pictures[:, 0], prompts, [{}] * 24)) > 0.9
    assert sum(exact(pictures[:, 0], prompts[1:] + prompts[:1], [{}] * 24)) == 0
    graded = Ocr(confidence=0.0, detect=False)(pictures[:, 0], prompts[1:] + prompts[:1], [{}] * 24)
    assert 0 < np.mean(graded) < 0.5  # some letters are the same


def test_pictures_are_read_alike_together_and_one_by_one(drawn):
    reader, pictures = Ocr(confidence=0.0, detect=False), drawn[1][:8, 0]
    assert reader.read(pictures) == [reader.read(picture[None])[0] for picture in pictures]


def test_words_distance_grows_with_damage(drawn):
    prompts, true = drawn[0][:12], drawn[1][:12]
    noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
    faint, noisy = 0.7 * true + 0.3 * BACKGROUND, (true + 0.1 * noise).clamp(0, 1)
    assert words_distance(true, prompts) < 0.5 * min(words_distance(faint, prompts), words_distance(noisy, prompts))


# ---------------------------------------------------------------- its model


def test_its_presets_work_with_the_model_of_the_package(capsys):
    assert sum(file.stat().st_size for file in BUNDLED["words"].rglob("*") if file.is_file()) < 12e6
    assert main(["plan", "--preset", "words/neighbor_late"]) == 0
    assert "words" in capsys.readouterr().out
