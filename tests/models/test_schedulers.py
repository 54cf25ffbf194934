"""Schedulers: what the pipeline takes gives its pictures, and what cannot be used is refused before anything is trained."""

from itertools import pairwise

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from mutations import is_one_line
from runs import settings
from test_contract import FAMILIES, Case

from neighbor_grpo.cli import main
from neighbor_grpo.errors import UserError
from neighbor_grpo.flow.path import shift_time

EULER = {
    "shift": {"shift": 2.5},
    "dynamic": {"use_dynamic_shifting": True},
    "linear": {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    "karras": {"shift": 3.0, "use_karras_sigmas": True},
    "exponential": {"shift": 3.0, "use_exponential_sigmas": True},
    "beta": {"shift": 3.0, "use_beta_sigmas": True},
    "terminal": {"shift": 3.0, "shift_terminal": 0.1},
}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
NAMES = ["flux", "flux2", "sd3", "qwen_image", "z_image", "wan", "hunyuan_video"]


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Families with their models, loaded once; a test gives them a scheduler."""

    class Cases(dict):
        def __missing__(self, name):
            case = self[name] = Case(FAMILIES[name], tmp_path_factory.mktemp(name))
            case.model = case.load()
            return case

    return Cases()


def with_scheduler(case, scheduler, **changes):
    case.model.pipe.scheduler = scheduler
    return case.model.with_settings(**changes)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=() if name in ("flux", "sd3", "wan") or kind == "dynamic" else pytest.mark.slow)
        for name in NAMES
        for kind in EULER
    ],
)
def test_what_the_pipeline_takes_gives_its_pictures_and_what_it_refuses_is_refused(cases, name, kind):
    case, scheduler = cases[name], FlowMatchEulerDiscreteScheduler(**EULER[kind])
    case.model.pipe.scheduler = scheduler
    try:
        theirs = case.called(case.model, 3, case.model.pipe)
    except ValueError:
        with pytest.raises(UserError, match="cannot use the scheduler"):
            with_scheduler(case, scheduler)
        assert EULER[kind].get("use_dynamic_shifting") and name in ("wan", "hunyuan_video")
        return
    model = with_scheduler(case, scheduler)
    torch.testing.assert_close(case.drawn(model, 3), theirs, atol=1e-4, rtol=0)
    assert all(a > b for a, b in pairwise(model.times(3)))


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, UniPCMultistepScheduler) for name in ("flux", "sd3", "wan")]
    + [(name, DPMSolverMultistepScheduler) for name in ("sd3", "wan")],
)
def test_other_schedulers_give_the_times_of_their_flow(cases, name, kind):
    scheduler = kind(**FLOW)
    scheduler.set_timesteps(6)
    times = with_scheduler(cases[name], scheduler).times(6)
    assert times[1:] == pytest.approx(scheduler.sigmas.tolist()[1:]) and 0.999 < times[0] <= 1 and times[-1] == 0
    assert torch.isfinite(cases[name].drawn(cases[name].model.with_settings(), 3)).all()


@pytest.mark.parametrize("name", ["flux", "sd3", "wan"])
@pytest.mark.parametrize(
    ("scheduler", "remedy"),
    [
        (FlowMatchHeunDiscreteScheduler(shift=3.0), "scheduler_config.json"),
        (DPMSolverMultistepScheduler(), "scheduler_config.json"),
        (EulerDiscreteScheduler(), "scheduler_config.json"),
        (UniPCMultistepScheduler(), "scheduler_config.json"),
        (UniPCMultistepScheduler(**FLOW, final_sigmas_type="sigma_min"), "final_sigmas_type to zero"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas to false"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(cases, name, scheduler, remedy):
    with pytest.raises(UserError, match=remedy) as caught:
        with_scheduler(cases[name], scheduler)
    assert is_one_line(caught.value)


def test_a_grid_that_only_some_numbers_of_steps_spoil(cases):
    model = with_scheduler(cases["qwen_image"], FlowMatchEulerDiscreteScheduler(shift_terminal=0.02))
    assert len(model.times(2)) == 3
    with pytest.raises(UserError, match="take more steps"):
        model.times(1)


def test_commands_refuse_it_before_weights_are_read(tiny_flux, tmp_path, monkeypatch, capsys):
    place = tmp_path / "pipeline"
    place.mkdir()
    for part in tiny_flux.iterdir():
        (place / part.name).symlink_to(part)
    (place / "scheduler").unlink()
    FlowMatchEulerDiscreteScheduler(invert_sigmas=True).save_pretrained(place / "scheduler")
    monkeypatch.setattr("neighbor_grpo.run.weights.load_model", lambda *_, **__: pytest.fail("weights were read"))
    more = ["sample", "--model", str(place), "--prompt", "x", "--device", "cpu", "--out", str(tmp_path / "out")]
    for command in (["train", *settings(place, tmp_path)], ["plan", f"model.path={place}"], more):
        assert main(command) == 2
        assert "invert_sigmas to false" in capsys.readouterr().err
    assert not (tmp_path / "run").exists() and not (tmp_path / "out").exists()


# ---------------------------------------------------------------- the shift is a setting


@pytest.mark.parametrize("name", NAMES)
def test_a_number_shifts_the_times_of_every_size_and_keeps_the_rest(cases, name):
    """t <- m·t / (1 + (m - 1)·t) of equal steps; SD3's own last time is shifted twice, as in its pipeline."""
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=name in ("flux", "flux2", "qwen_image"), shift=3.0)
    case = cases[name]
    model, wide = (with_scheduler(case, scheduler, shift=2.0, height=h) for h in (32, 48))
    assert model.times(4) == wide.times(4) and model.shift(4) == 2.0
    if name not in ("sd3", "wan"):
        assert model.times(4) == pytest.approx([shift_time(t, 2.0) for t in (1, 0.75, 0.5, 0.25, 0)])
    case.model.pipe.scheduler = model.scheduler
    torch.testing.assert_close(case.drawn(model, 3), case.called(model, 3, case.model.pipe), atol=1e-4, rtol=0)
    assert case.model.with_settings().times(4) == model.times(4)


def test_auto_is_the_rule_of_the_pipeline(cases):
    """FLUX.1-dev's: a line of log m through 256 and 4096 tokens; 2025 tokens are 720 x 720 of the true model."""
    model = with_scheduler(cases["flux"], FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    model.grid = (45, 45)
    assert model.shift(8) == pytest.approx(2.224, abs=1e-3)
    assert model.times(2)[1] == pytest.approx(shift_time(0.5, model.shift(2)))


def test_a_shift_without_effect_is_refused(cases):
    with pytest.raises(UserError, match="set shift to auto"):
        with_scheduler(cases["wan"], UniPCMultistepScheduler(**FLOW | {"use_karras_sigmas": True}), shift=2.0)


def test_the_plan_prints_it(capsys):
    assert main(["plan", "model.shift=1.5", "method={name: neighbor, num_steps: 2, num_train_steps: 1, group_size: 4}"]) == 0
    assert "shift 1.5 (model.shift" in capsys.readouterr().out
