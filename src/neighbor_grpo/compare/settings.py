"""The settings of a comparison, typed and checked, and the configuration that all runs of a method share."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from neighbor_grpo.config import (
    Config,
    Layer,
    Positive,
    Section,
    checked,
    layers_of,
    method_name,
    override,
    preset_file,
    read_values,
    resolve,
)
from neighbor_grpo.config.schema import Place, Seed
from neighbor_grpo.config.sections import Name
from neighbor_grpo.errors import UserError, shown

Count = Annotated[int, Field(ge=1, le=10**12)]
Rate = Annotated[float, Field(gt=0)]


class Bound(Section):
    """Describe how far a measure may move: by numbers of its own, or from where it was before training."""

    least: float | None = Field(None, description="smallest value")
    most: float | None = Field(None, description="largest value")
    fall: float | None = Field(None, ge=0, description="how far below its start")
    times: float | None = Field(None, gt=0, description="how many times its start")

    @model_validator(mode="after")
    def _check(self) -> "Bound":
        if not self.model_fields_set:
            raise ValueError("a bound needs one of least, most, fall, times")
        return self

    def interval(self, start: float) -> tuple[float, float]:
        """Return the smallest and the largest value that is allowed after this start."""
        low = [-inf if self.least is None else self.least, -inf if self.fall is None else start - self.fall]
        high = [inf if self.most is None else self.most, inf if self.times is None else start * self.times]
        return max(low), min(high)


Bounds = dict[str, Bound]


class Rise(Section):
    """Describe a reward to reach by where it was before training, so that it means the same on other prompts."""

    times: float = Field(gt=0, description="how many times its start")


class Budget(Section):
    """Describe what every run may spend on training: exactly one of three."""

    iterations: Count | None = Field(None, description="rollouts")
    evaluations: Count | None = Field(None, description="of the model: a forward counts 1, a forward-backward 3")
    seconds: float | None = Field(None, gt=0, description="of training, without evaluations")

    @model_validator(mode="after")
    def _check(self) -> "Budget":
        if sum(value is not None for value in (self.iterations, self.evaluations, self.seconds)) != 1:
            raise ValueError("budget: give exactly one of iterations, evaluations, seconds")
        return self


class Tune(Section):
    """Describe how each method's learning rate is chosen, within the bounds, on a seed that is not reported."""

    by: Literal["reach", "reward"] = Field(
        "reward", description="reach: the rate that gets to `reach` first; reward: the rate that gets highest"
    )
    lr: list[Rate] = Field(min_length=1, description="learning rates to try")
    extend: Annotated[int, Field(ge=0, le=20)] = Field(
        3, description="rates to try beyond an end of the grid, one after another, as long as the best is the last one there"
    )
    seed: Seed = Field(1000, description="must not be one of the reported seeds")
    share: float = Field(1.0, gt=0, le=1, description="share of the budget that each try may spend")
    keys: dict[str, Any] = Field({}, description="keys of the tries alone, for instance other evaluation prompts")


class Comparison(Section):
    """Describe a comparison: several methods and seeds with one budget."""

    run_dir: Place = Field("runs/compare", description="directory of the runs and the report")
    base: dict[str, Any] = Field({}, description="keys of a run's configuration that all share; preset: NAME, config: FILE")
    methods: list[dict[str, Any]] = Field(
        min_length=1, description="what differs between runs: {run: NAME, preset: NAME, config: FILE, any other key}"
    )
    seeds: list[Seed] = Field([0, 1, 2], min_length=1, description="reported seeds")
    budget: Budget
    tune: Tune | None = Field(None, description="null = each run's own optimizer.lr")
    points: Positive = Field(8, description="evaluations along each run; with budget.seconds, base.evaluate.every is used")
    bounds: Bounds = Field(
        {},
        description="{measure: {least, most, fall, times}}: a run counts until it leaves them, so that hacking does not win",
    )
    reach: float | Rise | str | Annotated[list[Name], Field(min_length=1)] | None = Field(
        None,
        description="report the cost of reaching this reward, or {times: x} of that before training, or the highest reward "
        "within the bounds of this run, or of the best of these runs; null = of the best of all runs",
    )


@dataclass(frozen=True)
class Entry:
    """Hold one row of the table: its name and the configuration that all its runs share."""

    name: str
    config: Config


def load_comparison(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Comparison, list[Entry]]:
    """Load a comparison, a file or a preset, and its rows, each with the iterations that its budget allows.

    Raises UserError for every mistake that can be known before training.
    """
    comparison, entries = read_comparison(path, overrides)
    return comparison, with_budgets(comparison, entries)


def read_comparison(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Comparison, list[Entry]]:
    """Read and check a comparison and its rows, before their budgets are counted, for which a library is loaded."""
    path = Path(path) if os.path.isfile(path) or Path(path).suffix == ".yaml" else preset_file(str(path))
    comparison = checked(Comparison, override(read_values(path), overrides))
    base, *methods = [_with_place(values, path.parent) for values in (comparison.base, *comparison.methods)]
    comparison = comparison.model_copy(update={"base": base, "methods": methods})
    entries = [_entry(values, comparison) for values in comparison.methods]
    _check(comparison, entries)
    return comparison, entries


def with_budgets(comparison: Comparison, entries: Sequence[Entry]) -> list[Entry]:
    """Return the rows with the iterations that the budget allows."""
    steps = max(entry.config.method.num_steps for entry in entries)  # all are evaluated with the finest sampler of the training
    return [Entry(entry.name, _with_budget(entry.config, comparison, steps)) for entry in entries]


def _check(comparison: Comparison, entries: Sequence[Entry]) -> None:
    """Raise UserError where the parts of a comparison do not fit together."""
    names = [entry.name for entry in entries]
    if shared := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two methods share the run name {shared!r}: give one of them another with run: NAME")
    reach = [comparison.reach] if isinstance(comparison.reach, str) else comparison.reach
    if isinstance(reach, list) and (unknown := next((name for name in reach if name not in names), None)):
        raise UserError(f"reach: unknown run {unknown!r}: choose among {', '.join(names)}")
    if any("-" in (entry.config.prompts.path, entry.config.prompts.eval_path) for entry in entries):
        raise UserError("prompts.path is -: a comparison reads its prompts for each run, write them into a file")
    measured = {*entries[0].config.reward.train, *entries[0].config.watched}
    if unknown := next((name for name in comparison.bounds if name not in measured), None):
        raise UserError(f"bounds: {unknown!r} is not measured: choose among {', '.join(sorted(measured))}")
    if comparison.tune is None:
        return
    if comparison.tune.seed in comparison.seeds:
        raise UserError(f"tune.seed ({comparison.tune.seed}) is one of the reported seeds: choose another")
    if comparison.tune.by == "reach" and not isinstance(comparison.reach, float | Rise):
        raise UserError("tune.by is reach, so reach must be a number or {times: x}: set it, or tune.by: reward")
    for entry in entries:
        tried(entry.config, comparison.tune)


def _with_place(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Let `config` name its file from anywhere, so that a copy of the comparison reads it too."""
    file = values.get("config")
    return values | {"config": os.path.abspath(folder / file)} if isinstance(file, str) else values


def _entry(values: dict[str, Any], comparison: Comparison) -> Entry:
    """Build one row from its keys over those of `base`."""
    try:
        config = resolve([*_layers(comparison.base), *_layers(values)])
    except UserError as error:
        name = next((values[key] for key in ("run", "preset", "config", "method") if key in values), "")
        raise UserError(f"methods, {shown(name)}: {error}") from error
    return Entry(values.get("run") or method_name(config.method), config)


def tried(config: Config, tune: Tune) -> Config:
    """Return the configuration of a method's tries.  Raises UserError for keys that a run does not have."""
    try:
        return resolve([*layers_of(config.model_dump(mode="json"), "the run"), *layers_of(tune.keys, "tune.keys")])
    except UserError as error:
        raise UserError(f"tune.keys: {error}") from error


def _layers(values: dict[str, Any]) -> list[Layer]:
    """Return the layers of a run's keys: its presets, the file named by `config`, then the keys themselves."""
    for key in ("run", "config"):
        if not isinstance(values.get(key, ""), str):
            raise UserError(f"{key} must be a text, not {shown(values[key])}")
    own = layers_of({key: value for key, value in values.items() if key not in ("run", "config")}, "the comparison")
    file = values.get("config")
    return [*(layers_of(read_values(file), file) if file else []), *own]


def _with_budget(config: Config, comparison: Comparison, steps: int) -> Config:
    """Set the iterations that the budget allows and evaluate at `points` of them, with `steps` unless another number is set."""
    evaluation = config.evaluate.model_copy(update={"num_steps": config.evaluate.num_steps or steps})
    if comparison.budget.seconds:
        return config.model_copy(update={"iterations": 100_000, "seconds": comparison.budget.seconds, "evaluate": evaluation})
    iterations = comparison.budget.iterations or _affordable(config, comparison.budget)
    evaluation = evaluation.model_copy(update={"every": ceil(iterations / comparison.points)})
    return config.model_copy(update={"iterations": iterations, "evaluate": evaluation})


def _affordable(config: Config, budget: Budget) -> int:
    """Return the iterations that a budget of evaluations pays for.  Raises UserError where it is not even one."""
    from neighbor_grpo.planning.plan import affordable  # torch takes seconds to load, and mistakes should show before

    assert budget.evaluations is not None
    if iterations := affordable(config, budget.evaluations):
        return iterations
    raise UserError(
        f"budget.evaluations ({budget.evaluations}) is less than one iteration of {method_name(config.method)} costs: give more"
    )
