"""The runs of a comparison: which to begin, to resume, or to leave as they are.

Each is an ordinary run in its own directory, <run_dir>/<name>/seed-<n>, so the same command resumes a comparison that was
stopped.  With `tune`, each method first runs with every learning rate of the grid on a seed of its own, in
<run_dir>/<name>/lr-<rate>; the reported seeds use the best rate.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from math import ceil
from pathlib import Path

import torch

from neighbor_grpo.compare.settings import Comparison, Entry, Tune, within
from neighbor_grpo.config import Config, write_values
from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic
from neighbor_grpo.run import files
from neighbor_grpo.training.errors import TrainingError
from neighbor_grpo.training.signals import SignalError
from neighbor_grpo.training.trainer import Trainer

THE_COMMAND = "the same command"  # what resumes a comparison


def run_all(comparison: Comparison, entries: Sequence[Entry], say: Callable[[str], None] = print) -> None:
    """Tune and train whatever is not finished yet."""
    directory = Path(comparison.run_dir)
    directory.mkdir(parents=True, exist_ok=True)
    atomic.write(directory / "comparison.yaml", write_values(comparison.model_dump(mode="json")))
    for entry in entries:
        config = with_rate(entry.config, tune_rate(entry, comparison, say))
        for seed in comparison.seeds:
            train(config, directory / entry.name / f"seed-{seed}", seed, say)


def with_rate(config: Config, lr: float) -> Config:
    """Set the learning rate of a configuration."""
    return config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"lr": lr})})


def tune_rate(entry: Entry, comparison: Comparison, say: Callable[[str], None]) -> float:
    """Train a method with every rate of the grid and return the chosen one; without `tune` its own rate."""
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
    chosen = choose_rate(runs, entry.config.reward.train, tune)
    say(f"{entry.name}: optimizer.lr = {chosen:g}")
    return chosen


def choose_rate(runs: Mapping[float, Path], rewards: Mapping[str, float], tune: Tune) -> float:
    """Choose the rate with the highest final reward whose run did not diverge and keeps within the bounds.

    The smallest rate where no run does.
    """
    scores = {}
    for lr, run in runs.items():
        last = {key.removeprefix("eval/"): value for key, value in files.read_metrics(run)[-1].items()}
        if not files.diverged(run) and within(last, tune.within):
            scores[lr] = sum(weight * last[name] for name, weight in rewards.items())
    return max(scores, key=scores.__getitem__) if scores else min(runs)


def train(config: Config, run: Path, seed: int, say: Callable[[str], None]) -> None:
    """Begin or resume a run unless it is finished or has diverged; write what it prints to <run>/log.txt."""
    config = config.model_copy(update={"run_dir": str(run), "seed": seed})
    begun = (run / "config.yaml").is_file()
    if begun and files.read_config(run) != config:
        raise UserError(f"{run} was made with other settings: choose another run_dir, or remove it")
    if files.finished(run) or files.diverged(run):
        return
    run.mkdir(parents=True, exist_ok=True)
    say(f"{run}: {'resumes' if begun else 'begins'}, {config.iterations} iterations at most")
    try:
        _train_logged(config, run, begun)
    except SignalError as stop:
        raise SignalError(stop.signum, THE_COMMAND) from stop
    except TrainingError:
        if not files.diverged(run):
            raise
        say(f"{run}: diverged after {len(files.read_metrics(run)) - 1} iterations")
    gc.collect()  # the trainer is out of scope here: free its memory for the next run
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _train_logged(config: Config, run: Path, begun: bool) -> None:
    """Train and write what is printed to log.txt; also stop for a signal that came during the last iteration."""
    with (run / "log.txt").open("a") as log, redirect_stdout(log):
        trainer = Trainer.resume(run) if begun else Trainer(config)
        trainer.run()
    if trainer.stop.signum is not None:
        raise SignalError(trainer.stop.signum, THE_COMMAND)
