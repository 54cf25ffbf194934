"""The runs of a comparison: which to begin, to resume, or to leave as they are.

Each is an ordinary run in its own directory, <run_dir>/<name>/seed-<n>, so the same command resumes a comparison that was
stopped.  With `tune`, each method first tries every learning rate of the grid on a seed of its own, in
<run_dir>/<name>/lr-<rate>; the reported seeds use the best rate.  A try ends where it leaves the bounds, since nothing after
counts; reported seeds go on to the end.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from math import ceil, inf
from pathlib import Path

import torch

from neighbor_grpo.compare.rows import row_of
from neighbor_grpo.compare.settings import Comparison, Entry, Rise, Tune, tried
from neighbor_grpo.config import Config, write_values
from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic
from neighbor_grpo.run import files
from neighbor_grpo.run.record import COMPARISON, is_run
from neighbor_grpo.training.errors import TrainingError
from neighbor_grpo.training.parts import Known
from neighbor_grpo.training.signals import SignalError
from neighbor_grpo.training.trainer import Trainer

THE_COMMAND = "the same command"  # what resumes a comparison


def run_all(comparison: Comparison, entries: Sequence[Entry], say: Callable[[str], None] = print) -> None:
    """Tune and train whatever is not finished yet."""
    directory = Path(comparison.run_dir)
    refuse_others(comparison, entries)
    directory.mkdir(parents=True, exist_ok=True)
    atomic.write(directory / COMPARISON, write_values(comparison.model_dump(mode="json")))
    known: Known = {}
    for entry in entries:
        config = with_rate(entry.config, tune_rate(entry, comparison, known, say))
        for seed in comparison.seeds:
            train(config, directory / entry.name / f"seed-{seed}", seed, known, say)


def refuse_others(comparison: Comparison, entries: Sequence[Entry]) -> None:
    """Raise UserError where a run was begun with other settings, before anything is written; tuned rates may differ."""
    for entry in entries:
        place = Path(comparison.run_dir) / entry.name
        planned = {place / f"seed-{seed}": (entry.config, seed) for seed in comparison.seeds}
        if comparison.tune:
            tries = config_of_tries(entry, comparison.tune)
            planned |= {run: (tries, comparison.tune.seed) for run in place.glob("lr-*")}
        for run, (config, seed) in planned.items():
            if is_run(run):
                found = files.read_config(run)
                placed(with_rate(config, found.optimizer.lr) if comparison.tune else config, run, seed, found)


def config_of_tries(entry: Entry, tune: Tune) -> Config:
    """Return the settings that the tries of a method share."""
    config = tried(entry.config, tune)
    return config.model_copy(
        update={"iterations": ceil(tune.share * config.iterations), "seconds": config.seconds and tune.share * config.seconds}
    )


def placed(config: Config, run: Path, seed: int, found: Config | None) -> Config:
    """Return the settings of a run in its directory.  Raises UserError where it was begun with others: `found`."""
    config = config.model_copy(update={"run_dir": str(run), "seed": seed})
    if found not in (None, config):
        raise UserError(f"{run} was made with other settings: choose another run_dir, or remove it")
    return config


def with_rate(config: Config, lr: float) -> Config:
    """Set the learning rate of a configuration."""
    return config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"lr": lr})})


def tune_rate(entry: Entry, comparison: Comparison, known: Known, say: Callable[[str], None]) -> float:
    """Train a method with every rate of the grid, extended until the best is inside; return the best.

    Without `tune` it is the method's own rate.
    """
    tune = comparison.tune
    if tune is None:
        return entry.config.optimizer.lr
    config = config_of_tries(entry, tune)
    runs: dict[float, Path] = {}
    more = tune.lr
    for _ in range(tune.extend + 1):
        for lr in more:
            runs[lr] = Path(comparison.run_dir) / entry.name / f"lr-{lr:g}"
            train(with_rate(config, lr), runs[lr], tune.seed, known, say, partial(has_left, runs[lr], comparison))
        chosen = choose_rate(runs, comparison)
        more = beyond(sorted(runs), chosen)
        if not more:
            break
    say(f"{entry.name}: optimizer.lr = {chosen:g}")
    return chosen


def has_left(run: Path, comparison: Comparison) -> bool:
    """Return whether a run has left the bounds."""
    row = row_of("", [run], comparison)
    return row.kept < row.measures["reward"].shape[1]


def beyond(rates: Sequence[float], best: float) -> list[float]:
    """Return the rate to try next where the best is at an end of the sorted rates, as far beyond as its neighbour is before."""
    if len(rates) < 2 or best not in (rates[0], rates[-1]):
        return []
    neighbour = rates[1] if best == rates[0] else rates[-2]
    return [float(f"{best * best / neighbour:.3g}")]


def choose_rate(runs: Mapping[float, Path], comparison: Comparison) -> float:
    """Choose a rate: the cheapest to reach the reward, otherwise the one that gets highest, both within the bounds.

    A run that diverged does not count; the smallest rate where none counts.
    """
    rows = {lr: row_of(f"{lr:g}", [run], comparison) for lr, run in runs.items() if not files.diverged(run)}
    reach = comparison.reach if comparison.tune and comparison.tune.by == "reach" else None

    def merit(lr: float) -> tuple[float, float]:
        row, cost = rows[lr], None
        if isinstance(reach, float | Rise):
            cost = row.cost_to_reach(row.level(reach), "evaluations").by_mean
        return (inf if cost is None else cost), -row.highest

    kept = [lr for lr, row in rows.items() if row.kept]
    return min(kept, key=merit) if kept else min(runs)


def train(
    config: Config,
    run: Path,
    seed: int,
    known: Known,
    say: Callable[[str], None],
    enough: Callable[[], bool] | None = None,
) -> None:
    """Begin or resume a run unless it is finished or has diverged; write what it prints to <run>/log.txt.

    known: evaluations before training, which this run uses or adds to.
    enough: asked after every evaluation whether the run ends there.
    """
    begun = is_run(run)
    config = placed(config, run, seed, files.read_config(run) if begun else None)
    if files.finished(run) or files.diverged(run):
        return
    run.mkdir(parents=True, exist_ok=True)
    say(f"{run}: {'resumes' if begun else 'begins'}, {config.iterations} iterations at most")
    try:
        _train_logged(config, run, begun, known, enough)
    except SignalError as stop:
        raise SignalError(stop.signum, THE_COMMAND) from stop
    except TrainingError:
        if not files.diverged(run):
            raise
        say(f"{run}: diverged after {len(files.read_metrics(run)) - 1} iterations")
    gc.collect()  # the trainer is out of scope here: free its memory for the next run
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _train_logged(config: Config, run: Path, begun: bool, known: Known, enough: Callable[[], bool] | None) -> None:
    """Train and write what is printed to log.txt; also stop for a signal that came during the last iteration."""
    with (run / "log.txt").open("a") as log, redirect_stdout(log):
        trainer = Trainer.resume(run) if begun else Trainer(config)
        trainer.enough, trainer.parts.evaluator.known = enough, known
        trainer.run()
    if trainer.stop.signum is not None:
        raise SignalError(trainer.stop.signum, THE_COMMAND)
