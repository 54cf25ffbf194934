import pytest
import torch
from diffusers import DiffusionPipeline, FluxTransformer2DModel

from neighbor_grpo import cli
from neighbor_grpo.flow.solvers import solve
from neighbor_grpo.models.bundled import BUNDLED
from neighbor_grpo.worlds import unfinished
from neighbor_grpo.worlds.scenes.distil import STEPS, Distillation, grid

SIZES = ("--rounds", "2", "--steps", "2", "--pictures", "2", "--batch", "1")


@pytest.fixture(scope="module")
def work():
    return Distillation(rounds=2, steps=2, pictures=3, batch=2, seed=0, device="cpu")


@torch.no_grad()
def reached(work, model, solver, count, x, prompts):
    return solve(solver, lambda x, t: work._at(model, x, t, prompts), x, grid(count))


def test_the_lessons_lead_along_the_teachers_path(work):
    """A student that has learned every target walks where a finer solver of the teacher's equation leads."""
    prompts = work.embed(3, 0)
    states, targets, *_ = work.lessons(work.teacher, prompts)
    finer = reached(work, work.teacher, "heun", 40, states[:, 0], prompts)
    coarse = reached(work, work.teacher, "euler", STEPS, states[:, 0], prompts)
    lengths = -torch.tensor(grid(STEPS)).diff().view(-1, 1, 1)
    lessons = states - lengths * targets
    torch.testing.assert_close(lessons[:, :-1], states[:, 1:])
    assert (lessons[:, -1] - finer).square().mean() < 0.1 * (coarse - finer).square().mean()


def test_the_bundled_student_ends_nearer_to_the_teachers_path_than_the_teacher(work):
    """In four Euler steps from the same noise; the median picture, since a few end with another composition."""
    student = FluxTransformer2DModel.from_pretrained(BUNDLED["scenes_4"] / "transformer", dtype=torch.float32)
    prompts, noise = work.embed(16, 1), torch.randn(16, 16, 64, generator=torch.Generator().manual_seed(1))
    finer = reached(work, work.teacher, "dpmpp_2m", 12, noise, prompts)
    own, coarse = (reached(work, model, "euler", STEPS, noise, prompts) for model in (student, work.teacher))
    assert (own - finer).square().mean((1, 2)).median() < 0.7 * (coarse - finer).square().mean((1, 2)).median()


def stopped_after_one(method):
    def once(work):
        if work.done:
            raise KeyboardInterrupt
        method(work)

    return once


@pytest.mark.slow
def test_a_distillation_that_was_stopped_ends_with_the_same_weights(tmp_path, capsys, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    command = ["scenes", "distil", *SIZES, "--out"]
    assert cli.main([*command, str(whole)]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(Distillation, "round", stopped_after_one(Distillation.round))
        assert cli.main([*command, str(stopped)]) == 130
    DiffusionPipeline.from_pretrained(stopped)  # the student of the first round
    assert cli.main([*command[:-1], "--seed", "1", "--out", str(stopped)]) == 2
    assert "give the same, or choose another --out" in capsys.readouterr().err
    assert cli.main([*command, str(stopped)]) == 0
    one, other = (DiffusionPipeline.from_pretrained(place).transformer.state_dict() for place in (whole, stopped))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not (stopped / unfinished.NAME).exists()
    assert not any(str(BUNDLED["scenes"]) in file.read_text() for file in stopped.rglob("*.json"))
    assert cli.main([*command, str(whole)]) == 2
    assert "not empty" in capsys.readouterr().err
