"""The files of a run: config.yaml, plan.txt, metrics.jsonl, failures.jsonl; checkpoint and report write what else is in it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from neighbor_grpo.config import Config, load_config
from neighbor_grpo.errors import UserError

if TYPE_CHECKING:  # the rewards bring transformers with them, which takes seconds
    from neighbor_grpo.rewards.score import Failure


def free(parent: str = "runs") -> str:
    """The first of parent/001, parent/002, ... that is not there."""
    return next(name for n in range(1, 10_000) if not Path(name := f"{parent}/{n:03d}").exists())


def resume_command(run: Path) -> str:
    """What to type to go on with a run."""
    return f"neighbor-grpo train --resume {run}"


def config_of(run: Path) -> Config:
    """The configuration of the run in a directory (which may have been moved)."""
    if not (run / "config.yaml").is_file():
        raise UserError(f"no run in {run}: there is no config.yaml")
    return load_config(run / "config.yaml").model_copy(update={"run_dir": str(run)})


def refuse_another(run: Path) -> None:
    """Raise UserError where a run lies already."""
    if (run / "config.yaml").exists():
        raise UserError(f"{run} holds another run: choose another run_dir, or go on with {resume_command(run)}")


def finished(run: Path) -> bool:
    """Whether a run came to its end: its page is written last."""
    return (run / "report.html").is_file()


def diverged(run: Path) -> bool:
    """Whether a run ended with a loss or gradient that was not finite."""
    return (run / "failed").is_dir()


def begin(run: Path, config: Config, plan: list[str]) -> None:
    run.mkdir(parents=True, exist_ok=True)
    (run / "plan.txt").write_text("\n".join(plan) + "\n")
    (run / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def record(run: Path, figures: dict) -> None:
    """One line of metrics.jsonl."""
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(figures) + "\n")


def record_failures(run: Path, iteration: int, name: str, failures: "Sequence[Failure]") -> None:
    """A line of failures.jsonl for each picture that a reward could not score; no file without any."""
    if not failures:
        return
    with (run / "failures.jsonl").open("a", encoding="utf-8") as file:
        for failure in failures:
            line = {"iteration": iteration, "reward": name, "prompt": failure.prompt, "reason": failure.reason}
            file.write(json.dumps(line) + "\n")


def metrics(run: Path) -> list[dict]:
    """The lines of metrics.jsonl, but for one cut off by a kill."""
    file, lines = run / "metrics.jsonl", []
    for line in file.read_text().splitlines() if file.is_file() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def rewind(run: Path, iteration: int) -> None:
    """Drop the lines after `iteration`: they will be written again."""
    kept = [json.dumps(line) + "\n" for line in metrics(run) if line["iteration"] <= iteration]
    (run / "metrics.jsonl").write_text("".join(kept))
