import pytest
import torch
from diffusers import DiffusionPipeline

from neighbor_grpo import cli
from neighbor_grpo.flow.solvers import solve
from neighbor_grpo.worlds.scenes.distil import STEPS, Distillation, grid

SIZES = ("--rounds", "2", "--steps", "2", "--pictures", "2", "--batch", "1")


def test_the_lessons_lead_along_the_teachers_path():
    """A student that has learned every target walks where a finer solver of the teacher's equation leads."""
    work = Distillation(rounds=2, steps=2, pictures=3, batch=2, seed=0, device="cpu")
    prompts = work.embed(3, 0)
    states, targets, *_ = work.lessons(work.teacher, prompts)
    with torch.no_grad():
        finer, coarse = (
            solve(name, lambda x, t: work._at(work.teacher, x, t, prompts), states[:, 0], grid(count))
            for name, count in (("heun", 40), ("euler", STEPS))
        )
    lengths = -torch.tensor(grid(STEPS)).diff().view(-1, 1, 1)
    reached = states - lengths * targets
    torch.testing.assert_close(reached[:, :-1], states[:, 1:])
    assert (reached[:, -1] - finer).square().mean() < 0.1 * (coarse - finer).square().mean()


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
    assert not (stopped / "unfinished.pt").exists()
    assert cli.main([*command, str(whole)]) == 2
    assert "not empty" in capsys.readouterr().err
