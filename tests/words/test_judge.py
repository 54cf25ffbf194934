"""The second OCR, which judges words and is never trained on."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from neighbor_grpo.errors import UserError
from neighbor_grpo.rewards.registry import load_reward
from neighbor_grpo.rewards.score import score
from neighbor_grpo.worlds.words.render import render
from neighbor_grpo.worlds.words.world import sample_specs

FILE = Path(__file__).parents[2] / "benchmarks" / "judge.py"
installed = pytest.mark.skipif(not shutil.which("tesseract"), reason="tesseract is not installed: apt install tesseract-ocr")


def drawn(n):
    rng = np.random.default_rng(3)
    specs = sample_specs(n, rng, held_out=True)
    return torch.from_numpy(np.stack([render(spec, rng) for spec in specs])), [spec.prompt for spec in specs]


def judge(place, folder=None, monkeypatch=None):
    """The reward in a copy of its file, where the programs are those of a folder."""
    if folder:
        monkeypatch.setenv("PATH", str(folder))
    shutil.copy(FILE, place / "judge.py")
    return load_reward(f"{place / 'judge.py'}:tesseract")


@installed
def test_true_words_are_read_and_others_are_not(tmp_path):
    images, prompts = drawn(16)
    reward = judge(tmp_path)
    assert score(reward, images, prompts, [{}] * 16).values.mean() > 0.9
    assert score(reward, images, prompts[1:] + prompts[:1], [{}] * 16).values.sum() == 0


@installed
def test_a_picture_without_letters_scores_nothing_and_one_without_a_text_has_no_score(tmp_path):
    images, prompts = drawn(1)
    both = torch.cat([torch.ones_like(images), images, images])
    scores = score(judge(tmp_path), both, [prompts[0], prompts[0], "a word"], [{}] * 3)
    assert scores.values[:2].tolist() == [0.0, 1.0] and scores.values[2].isnan() and len(scores.failures) == 1


@pytest.mark.parametrize("script", ["kill -11 $$", "printf 'one\\ftwo'", "echo no language >&2; exit 1"])
def test_a_program_that_fails_is_a_failure_and_no_number(script, tmp_path, monkeypatch):
    program = tmp_path / "tesseract"
    program.write_text(f"#!/bin/sh\n{script}\n")
    os.chmod(program, 0o755)
    images, prompts = drawn(1)
    scores = score(judge(tmp_path, tmp_path, monkeypatch), images, prompts, [{}])
    assert scores.values.isnan().all() and "tesseract failed" in str(scores.failures)


def test_where_it_is_not_installed_one_line_says_what_to_install(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="apt install tesseract-ocr") as error:
        judge(tmp_path, tmp_path, monkeypatch)
    assert "\n" not in str(error.value)
