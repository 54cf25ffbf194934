import os
from itertools import pairwise

import pytest
import torch
from diffusers import DiffusionPipeline

from neighbor_grpo import cli
from neighbor_grpo.flow.solvers import solve
from neighbor_grpo.worlds.scenes.distil import FINE, STEPS, Distillation, grid

SIZES = ("--rounds", "2", "--steps", "2", "--pictures", "2", "--batch", "1")


def test_the_lessons_lead_along_the_teachers_path():
    """A student that has learned every target walks where a far finer solver of the teacher's equation leads."""
    work = Distillation(rounds=2, steps=2, pictures=3, batch=2, seed=0, device="cpu")
    prompts = work.embed(3, 0)
    states, targets, *_ = work.lessons(work.teacher, prompts)
    with torch.no_grad():
        fine = solve("heun", lambda x, t: work._at(work.teacher, x, t, prompts), states[:, 0], grid(STEPS * FINE * 2))
    for k, (t, s) in enumerate(pairwise(grid(STEPS))):
        reached = states[:, k] + (s - t) * targets[:, k]
        then = states[:, k + 1] if k + 1 < STEPS else fine
        assert (reached - then).square().mean().sqrt() < (1e-5 if k + 1 < STEPS else 0.02 * fine.std())


@pytest.mark.slow
def test_a_distillation_that_was_stopped_ends_with_the_same_weights(tmp_path, capsys, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    command = ["scenes", "distil", *SIZES, "--out"]
    assert cli.main([*command, str(whole)]) == 0
    with monkeypatch.context() as patch:
        first = Distillation.round
        patch.setattr(Distillation, "round", lambda work: os.kill(os.getpid(), 2) if work.done else first(work))
        with pytest.raises(KeyboardInterrupt):
            cli.main([*command, str(stopped)])
    assert cli.main([*command[:-1], "--seed", "1", "--out", str(stopped)]) == 2
    assert "give the same, or choose another --out" in capsys.readouterr().err
    assert cli.main([*command, str(stopped)]) == 0
    one, other = (DiffusionPipeline.from_pretrained(place).transformer.state_dict() for place in (whole, stopped))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not (stopped / "unfinished.pt").exists()
    assert cli.main([*command, str(whole)]) == 2
    assert "not empty" in capsys.readouterr().err
