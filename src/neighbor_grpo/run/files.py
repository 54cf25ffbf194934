"""The files of a run: config.yaml, plan.txt, metrics.jsonl, failures.jsonl; not its checkpoints or report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from neighbor_grpo.errors import UserError

if TYPE_CHECKING:  # imported only where needed: these bring torch and transformers, which take seconds to load
    from neighbor_grpo.config import Config
    from neighbor_grpo.rewards.score import Failure

Figures = dict[str, Any]  # one line of metrics.jsonl: numbers by name
TRAINING_PHASES = ("encode", "rollout", "decode", "reward", "update")  # phases of an iteration, without its evaluation


@dataclass(frozen=True)
class Recorded:
    """Hold what a run has recorded so far, as a resumed run needs it."""

    before: Figures | None  # the figures before training, None where they are not recorded yet
    seconds: float  # spent on training


def free_directory(parent: str = "runs") -> str:
    """Return the first of parent/001, parent/002, ... that does not exist."""
    return next(name for n in range(1, 10_000) if not Path(name := f"{parent}/{n:03d}").exists())


def resume_command(run: Path) -> str:
    """Return the command that resumes a run."""
    return f"neighbor-grpo train --resume {run}"


def read_config(run: Path) -> "Config":
    """Read the configuration of a run in its present directory.  Raises UserError where there is no run."""
    from neighbor_grpo.config import load_config

    if not (run / "config.yaml").is_file():
        raise UserError(f"no run in {run}: give a directory with a config.yaml")
    return load_config(run / "config.yaml").model_copy(update={"run_dir": str(run)})


def refuse_existing(run: Path) -> None:
    """Raise UserError where the directory already holds a run."""
    if (run / "config.yaml").exists():
        raise UserError(f"{run} holds another run: choose another run_dir, or resume that run with {resume_command(run)}")


def finished(run: Path) -> bool:
    """Return whether a run is finished; its page is written last."""
    return (run / "report.html").is_file()


def diverged(run: Path) -> bool:
    """Return whether a run ended because a loss or gradient was not finite."""
    return (run / "failed").is_dir()


def begin(run: Path, config: "Config", plan: Sequence[str]) -> None:
    """Make the directory of a run and write its plan and configuration."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "plan.txt").write_text("\n".join(plan) + "\n")
    (run / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def record(run: Path, figures: Figures) -> None:
    """Append a line to metrics.jsonl."""
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(figures) + "\n")


def record_failures(run: Path, iteration: int, name: str, failures: "Sequence[Failure]") -> None:
    """Append a line to failures.jsonl for each picture that a reward could not score."""
    if not failures:
        return
    with (run / "failures.jsonl").open("a", encoding="utf-8") as file:
        for failure in failures:
            line = {"iteration": iteration, "reward": name, "prompt": failure.prompt, "reason": failure.reason}
            file.write(json.dumps(line) + "\n")


def read_metrics(run: Path) -> list[Figures]:
    """Read metrics.jsonl, up to a line that was cut off by a kill; nothing where the file is missing."""
    file = run / "metrics.jsonl"
    lines: list[Figures] = []
    for line in file.read_text().splitlines() if file.is_file() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def rewind(run: Path, iteration: int) -> Recorded:
    """Drop the lines of metrics.jsonl after `iteration`, which will be written again, and return what the others say."""
    lines = read_metrics(run)
    kept = [line for line in lines if line["iteration"] <= iteration]
    if (run / "metrics.jsonl").is_file():
        aside = run / "metrics.jsonl.new"  # renamed into place, so that a kill loses nothing
        aside.write_text("".join(json.dumps(line) + "\n" for line in kept))
        aside.replace(run / "metrics.jsonl")
    return Recorded(kept[0] if kept else None, sum(map(training_seconds, kept)))


def training_seconds(figures: Mapping[str, float]) -> float:
    """Add up the seconds of an iteration, without its evaluation."""
    return sum(figures.get(f"time/{phase}", 0.0) for phase in TRAINING_PHASES)


def evaluated(lines: Sequence[Figures]) -> list[Figures]:
    """Select the lines of metrics.jsonl that hold an evaluation."""
    return [line for line in lines if any(key.startswith("eval/") for key in line)]


@dataclass(frozen=True)
class Change:
    """Hold a measure's values on the evaluation prompts in the first and the last evaluation."""

    measure: str
    before: float
    after: float


def changes(lines: Sequence[Figures]) -> list[Change]:
    """Return how each measure has changed from the first to the last evaluation; nothing without an evaluation."""
    first, last = next(iter(evaluated(lines)), {}), next(iter(evaluated(lines)[::-1]), {})
    shared = [key for key in first if key.startswith("eval/") and key in last]
    return [Change(key.removeprefix("eval/"), first[key], last[key]) for key in shared]
