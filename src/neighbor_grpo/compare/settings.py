"""What a comparison may say, typed and checked; what every run of it comes to."""

from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from neighbor_grpo.config import Config, Positive, Section, configured, merge, one_line, override, read_values
from neighbor_grpo.errors import UserError
from neighbor_grpo.planning.plan import affordable


class Budget(Section):
    """What every run may spend on training: exactly one of three."""

    iterations: Positive | None = Field(None, description="rollouts")
    evaluations: Positive | None = Field(None, description="of the model: a forward 1, a forward-backward 3")
    seconds: float | None = Field(None, gt=0, description="of training, evaluation apart")

    @model_validator(mode="after")
    def _check(self) -> "Budget":
        if sum(value is not None for value in (self.iterations, self.evaluations, self.seconds)) != 1:
            raise ValueError("budget: give exactly one of iterations, evaluations, seconds")
        return self


class Tune(Section):
    """The rate of each method: the one with the highest held-out reward on a seed that is not reported."""

    lr: list[float] = Field(min_length=1, description="rates tried")
    seed: int = Field(1000, ge=0, description="not one of the seeds reported")
    share: float = Field(1.0, gt=0, le=1, description="of the budget that each try may spend")
    within: dict[str, tuple[float | None, float | None]] = Field(
        {}, description="{measure: [least, most]} that a rate must keep to, so that none is chosen for hacking the reward"
    )


def within(values: dict[str, float], bounds: dict[str, tuple[float | None, float | None]]) -> bool:
    """Whether every bounded measure lies between its least and its most."""
    return all(
        (low is None or values[name] >= low) and (high is None or values[name] <= high) for name, (low, high) in bounds.items()
    )


class Comparison(Section):
    run_dir: str = Field("runs/compare", description="where the runs and the report go")
    base: dict[str, Any] = Field({}, description="keys of a run's configuration, the same for all; config: file")
    methods: list[dict[str, Any]] = Field(
        min_length=1, description="what differs: {run: name, config: file, method: {...}, any other key}"
    )
    seeds: list[int] = Field([0, 1, 2], min_length=1, description="reported")
    budget: Budget
    tune: Tune | None = Field(None, description="null = every run's own optimizer.lr")
    points: Positive = Field(8, description="evaluations along each run; a budget of seconds takes base.evaluate.every")
    reach: str | float | None = Field(
        None,
        description="a reward, or a run whose final reward: what it costs the others to reach it is told; "
        "null = the best baseline within tune's bounds",
    )


@dataclass(frozen=True)
class Entry:
    """One line of the table: a name and the configuration all its runs share."""

    name: str
    config: Config


def load_comparison(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> tuple[Comparison, list[Entry]]:
    """A comparison and its lines, all checked before anything runs."""
    try:
        comparison = Comparison(**override(read_values(path), overrides))
    except ValidationError as error:
        raise UserError(one_line(error, Comparison)) from error
    entries = [_entry(values, comparison, Path(path).parent) for values in comparison.methods]
    names = [entry.name for entry in entries]
    if shared := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two methods share the run name {shared!r}: give one of them another with run: NAME")
    if comparison.tune and comparison.tune.seed in comparison.seeds:
        raise UserError(f"tune.seed ({comparison.tune.seed}) is one of the seeds reported: choose another")
    if isinstance(comparison.reach, str) and comparison.reach not in names:
        raise UserError(f"reach: no run {comparison.reach!r}; there are {', '.join(names)}")
    watched = {*entries[0].config.reward.train, *entries[0].config.watched}
    if unknown := next((name for name in (comparison.tune.within if comparison.tune else {}) if name not in watched), None):
        raise UserError(f"tune.within: {unknown!r} is not measured; measured are {', '.join(sorted(watched))}")
    steps = max(entry.config.method.num_steps for entry in entries)  # one sampler for all, the finest trained with
    return comparison, [Entry(entry.name, _budgeted(entry.config, comparison, steps)) for entry in entries]


def _entry(values: dict[str, Any], comparison: Comparison, folder: Path) -> Entry:
    try:
        config = configured(merge(_with_file(comparison.base, folder), _with_file(values, folder)))
    except UserError as error:
        raise UserError(f"methods, {values.get('run') or values.get('config') or values.get('method')}: {error}") from error
    return Entry(str(values.get("run") or config.method.name), config)


def _with_file(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Keys of a run's configuration: those given, over those of the file named by `config`."""
    own = {key: value for key, value in values.items() if key not in ("run", "config")}
    return merge(read_values(folder / values["config"]), own) if "config" in values else own


def _budgeted(config: Config, comparison: Comparison, steps: int) -> Config:
    """The configuration with as many iterations as the budget allows, evaluated at `points` of them."""
    budget, update = comparison.budget, {}
    if budget.seconds:
        update = {"iterations": 100_000, "seconds": budget.seconds}
    else:
        iterations = budget.iterations or affordable(config, budget.evaluations)
        if not iterations:
            raise UserError(
                f"budget.evaluations ({budget.evaluations}) is less than an iteration of {config.method.name} costs"
            )
        every = ceil(iterations / comparison.points)
        update = {"iterations": iterations, "evaluate": config.evaluate.model_copy(update={"every": every})}
    evaluation = update.get("evaluate", config.evaluate)
    update["evaluate"] = evaluation.model_copy(update={"num_steps": evaluation.num_steps or steps})
    return config.model_copy(update=update)
