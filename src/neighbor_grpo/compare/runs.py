"""The runs of a comparison: which are begun, gone on with, or left alone.

Every run is an ordinary one in its own directory, <run_dir>/<name>/seed-<n>, begun, gone on with or left alone by what lies
there; so a comparison that was stopped is taken up by the same command.  With `tune`, each method first runs at every rate
of the grid on a seed of its own, in <run_dir>/<name>/lr-<rate>, and the reported seeds take the best.
"""

import gc
from collections.abc import Callable
from contextlib import redirect_stdout
from math import ceil
from pathlib import Path

import torch
import yaml

from neighbor_grpo.compare.settings import Comparison, Entry, Tune, within
from neighbor_grpo.config import Config
from neighbor_grpo.errors import UserError
from neighbor_grpo.run import files
from neighbor_grpo.training.trainer import SignalError, Trainer, TrainingError


def run_all(comparison: Comparison, entries: list[Entry], say: Callable[[str], None] = print) -> None:
    """Tune and train what is not yet done."""
    directory = Path(comparison.run_dir)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "comparison.yaml").write_text(yaml.safe_dump(comparison.model_dump(mode="json"), sort_keys=False))
    for entry in entries:
        config = with_rate(entry.config, tuned(entry, comparison, say))
        for seed in comparison.seeds:
            train(config, directory / entry.name / f"seed-{seed}", seed, say)


def with_rate(config: Config, lr: float) -> Config:
    return config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"lr": lr})})


def tuned(entry: Entry, comparison: Comparison, say: Callable[[str], None]) -> float:
    """The rate to report: highest final held-out reward among those that keep within bounds, else the smallest."""
    tune = comparison.tune
    if tune is None:
        return entry.config.optimizer.lr
    runs = {lr: Path(comparison.run_dir) / entry.name / f"lr-{lr:g}" for lr in tune.lr}
    config = entry.config.model_copy(
        update={
            "iterations": ceil(tune.share * entry.config.iterations),
            "seconds": entry.config.seconds and tune.share * entry.config.seconds,
        }
    )
    for lr, run in runs.items():
        train(with_rate(config, lr), run, tune.seed, say)
    chosen = chosen_rate(runs, entry.config.reward.train, tune)
    say(f"{entry.name}: optimizer.lr = {chosen:g}")
    return chosen


def chosen_rate(runs: dict[float, Path], rewards: dict[str, float], tune: Tune) -> float:
    """Of finished runs by rate."""
    scores = {}
    for lr, run in runs.items():
        last = {key.removeprefix("eval/"): value for key, value in files.metrics(run)[-1].items()}
        if not files.diverged(run) and within(last, tune.within):
            scores[lr] = sum(weight * last[name] for name, weight in rewards.items())
    return max(scores, key=scores.__getitem__) if scores else min(runs)


def train(config: Config, run: Path, seed: int, say: Callable[[str], None]) -> None:
    """Begin a run, go on with it, or leave it if it is finished or has diverged.  What it prints goes to <run>/log.txt."""
    config = config.model_copy(update={"run_dir": str(run), "seed": seed})
    begun = (run / "config.yaml").is_file()
    if begun and files.config_of(run) != config:
        raise UserError(f"{run} was made with other settings: choose another run_dir, or remove it")
    if files.finished(run) or files.diverged(run):
        return
    run.mkdir(parents=True, exist_ok=True)
    say(f"{run}: {'going on' if begun else 'begins'}, {config.iterations} iterations at most")
    try:
        with (run / "log.txt").open("a") as log, redirect_stdout(log):
            trainer = Trainer.resume(run) if begun else Trainer(config)
            trainer.run()
        if trainer.stop.signum is not None:  # asked to stop during its last iteration
            raise SignalError(trainer.stop.signum, "the same command")
    except SignalError as stop:
        raise SignalError(stop.signum, "the same command") from stop
    except TrainingError:
        if not files.diverged(run):
            raise
        say(f"{run}: diverged after {len(files.metrics(run)) - 1} iterations")
    trainer = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
