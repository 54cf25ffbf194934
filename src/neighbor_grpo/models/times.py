"""The grid of times of a pipeline's scheduler: its shift, and that it is a grid from noise to data."""

from collections.abc import Mapping
from copy import deepcopy
from itertools import pairwise
from math import exp
from typing import Any

from diffusers import SchedulerMixin

from neighbor_grpo.errors import UserError, printable

FIRST = 0.99  # least time that a grid may begin with: what is drawn at first is noise
_SHIFTS = ("flow_shift", "shift")  # settings of schedulers: the m of t <- m·t / (1 + (m - 1)·t)
_FILE = "scheduler/scheduler_config.json"


def time_grid(scheduler: SchedulerMixin, arguments: Mapping[str, Any]) -> list[float]:
    """Return the grid 1 >= t_0 > ... > t_N = 0 of a scheduler, after its `set_timesteps` with the pipeline's arguments.

    UniPC's first time is 1e-6 below 1, to keep a logarithm finite; it is given as 1.  Raises UserError for a scheduler that
    the pipeline cannot use, or that has another grid.
    """
    name, scheduler = type(scheduler).__name__, deepcopy(scheduler)
    try:
        scheduler.set_timesteps(**arguments)
        first, *rest = scheduler.sigmas.tolist()
    except Exception as error:  # each scheduler refuses in its own way
        reason = printable((str(error).strip().splitlines() or [""])[0][:200])
        raise UserError(
            f"this pipeline cannot use the scheduler {name} with its settings ({type(error).__name__}: {reason}): put "
            f"the {_FILE} of the published model in its place"
        ) from error
    times = [1.0 if abs(first - 1) < 1e-5 else first, *rest]
    falls = FIRST <= times[0] <= 1 and all(a > b for a, b in pairwise(times)) and times[-1] == 0  # NaN does not fall
    if not falls:
        shown = ", ".join(f"{t:.4g}" for t in (times if len(times) < 8 else [*times[:3], *times[-3:]]))
        raise UserError(f"the times of the scheduler {name} do not fall from 1 to 0 ({shown}): {_remedy(scheduler, times)}")
    return times


def _remedy(scheduler: SchedulerMixin, times: list[float]) -> str:
    """Word what to change in a scheduler's settings."""
    config = scheduler.config
    if config.get("invert_sigmas"):
        return f"set invert_sigmas to false in {_FILE}"
    if "use_flow_sigmas" in config and not config["use_flow_sigmas"]:
        return f"set use_flow_sigmas to true and final_sigmas_type to zero in {_FILE}"
    if config.get("final_sigmas_type", "zero") != "zero":
        return f"set final_sigmas_type to zero in {_FILE}"
    if config.get("shift_terminal") and len(times) == 2:
        return "shift_terminal needs more than one step: take more steps"
    return f"put the {_FILE} of the published model in its place"


def shifted(scheduler: SchedulerMixin, shift: float, arguments: Mapping[str, Any]) -> SchedulerMixin:
    """Return a scheduler that shifts its times by `shift` for every size of a picture, and is the same otherwise.

    arguments: of `set_timesteps`.  Raises UserError for a scheduler whose times depend on no shift.
    """
    name = next((name for name in _SHIFTS if name in scheduler.config), "shift")
    dynamic = {"use_dynamic_shifting": False} if "use_dynamic_shifting" in scheduler.config else {}
    one, other = (type(scheduler).from_config(scheduler.config, **{name: value}, **dynamic) for value in (shift, shift + 1))
    if time_grid(one, arguments) == time_grid(other, arguments):
        raise UserError(f"the times of the scheduler {type(scheduler).__name__} depend on no shift: set shift to auto")
    return one


def shift_of(scheduler: SchedulerMixin, mu: float) -> float | None:
    """Return the m by which a scheduler shifts its times; `mu`: the pipeline's, for one that shifts by the size of a picture.

    None: it has no shift.
    """
    config = scheduler.config
    if config.get("use_dynamic_shifting"):
        return mu if config.get("time_shift_type") == "linear" else exp(mu)
    return next((float(config[name]) for name in _SHIFTS if name in config), None)
