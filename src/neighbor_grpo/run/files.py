"""The files of a run: config.yaml, plan.txt, metrics.jsonl, failures.jsonl; not its record, checkpoints or report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic
from neighbor_grpo.files.lock import LOCK, InUseError, Lock
from neighbor_grpo.prompts.reading import STDIN, read_prompts
from neighbor_grpo.run import record as records
from neighbor_grpo.run.record import CONFIG, Record, is_run

if TYPE_CHECKING:  # imported only where needed: these bring torch and transformers, which take seconds to load
    from neighbor_grpo.config import Config


class Failed(Protocol):
    """Describe a picture without a score."""

    @property
    def prompt(self) -> str:
        """Return its prompt."""

    @property
    def reason(self) -> str:
        """Return why, in one line."""


TRAINED = "trained weights"  # kind of the directories lora/ and transformer/
PROMPTS = "prompts-from-stdin.txt"  # kept, because it is read once
Figures = dict[str, Any]  # one line of metrics.jsonl: numbers by name
TRAINING_PHASES = ("encode", "rollout", "decode", "reward", "update")  # phases of an iteration, without its evaluation


def claim(run_dir: str | None, resume: bool = False) -> tuple[Path, Lock]:
    """Make or find the directory of a run, and lock it: two runs never share one.

    run_dir: None = the first free one of runs/001, runs/002, ...  Raises UserError where another process uses it, where a
    new run would overwrite another one, or where there is none to resume.
    """
    if run_dir is None:
        return claim_free(Path("runs"))
    run = Path(run_dir)
    if not resume:
        run.mkdir(parents=True, exist_ok=True)
    lock = Lock.take(run)
    try:
        if not resume:
            refuse_existing(run)
        atomic.tidy(run)
    except BaseException:
        lock.release()
        raise
    return run, lock


def claim_free(parent: Path) -> tuple[Path, Lock]:
    """Make and lock the first directory that is not used; one that a run left before it began is used again."""
    for n in range(1, 10_000):
        run = parent / f"{n:03d}"
        try:
            run.mkdir(parents=True)
        except FileExistsError:
            if not run.is_dir() or {path.name for path in run.iterdir()} - {LOCK}:
                continue
        try:
            return run, Lock.take(run)
        except InUseError:
            continue
    raise UserError(f"{parent} holds 9,999 runs: give run_dir")


def abandon(run: Path, lock: Lock) -> None:
    """Give a directory free; remove it where nothing was written to it."""
    try:
        if {path.name for path in run.iterdir()} <= {LOCK}:
            (run / LOCK).unlink(missing_ok=True)
            run.rmdir()
    except OSError:  # it has gone, or somebody has put something there
        pass
    lock.release()


def resume_command(run: Path) -> str:
    """Return the command that resumes a run."""
    return f"neighbor-grpo train --resume {run}"


def read_config(run: Path, changes: Sequence[str] = ()) -> "Config":
    """Read the configuration of a run in its present directory, with changes.  Raises UserError where there is no run."""
    from neighbor_grpo.config import load_config

    if not is_run(run):
        raise UserError(f"no run in {run}: give a directory with a {CONFIG}")
    config = load_config(run / CONFIG, list(changes))
    old = str(Path(config.run_dir or run) / PROMPTS)
    kept = {key: str(run / PROMPTS) for key in ("path", "eval_path") if getattr(config.prompts, key) == old}
    return config.model_copy(update={"run_dir": str(run), "prompts": config.prompts.model_copy(update=kept)})


def trained_weights(run: Path, best: bool = False) -> Path:
    """Return the directory of a run's trained weights, last or best.  Raises UserError where there are none."""
    weights = (run / "best" if best else run) / ("lora" if read_config(run).model.lora else "transformer")
    if weights.is_dir():
        atomic.check(weights, TRAINED)
        return weights
    if best:
        raise UserError(f"{run} kept no best weights: leave out --best, or set evaluate.best before training")
    raise UserError(f"{run} is not finished: resume it with {resume_command(run)}")


def refuse_existing(run: Path) -> None:
    """Raise UserError where the directory already holds a run."""
    if is_run(run):
        raise UserError(f"{run} holds another run: choose another run_dir, or resume that run with {resume_command(run)}")


def finished(run: Path) -> bool:
    """Return whether a run is finished."""
    return records.ended(run) == "finished"


def diverged(run: Path) -> bool:
    """Return whether a run ended because a loss or gradient was not finite."""
    return records.ended(run) == "diverged"


def begin(run: Path, config: "Config", plan: Sequence[str], record: Record) -> None:
    """Write the plan, the record and the configuration of a run; the configuration last, because it makes it a run."""
    from neighbor_grpo.config import write_values

    kept = {key: str(run / PROMPTS) for key in ("path", "eval_path") if getattr(config.prompts, key) == STDIN}
    if kept:
        atomic.write(run / PROMPTS, "".join(f"{prompt.text}\n" for prompt in read_prompts(STDIN)))
        config = config.model_copy(update={"prompts": config.prompts.model_copy(update=kept)})
        record = replace(record, settings=config.model_dump(mode="json"))
    atomic.write(run / "plan.txt", "\n".join(plan) + "\n")
    records.write_record(run, record)
    atomic.write(run / CONFIG, write_values(config.model_dump(mode="json")))


def read_plan(run: Path) -> str:
    """Return the plan that was printed; nothing where the file is missing."""
    return (run / "plan.txt").read_text(encoding="utf-8") if (run / "plan.txt").is_file() else ""


def record(run: Path, figures: Figures) -> None:
    """Append a line to metrics.jsonl."""
    atomic.append(run / "metrics.jsonl", json.dumps(figures))


def record_failures(run: Path, iteration: int, failures: Mapping[str, Sequence[Failed]], evaluation: bool = False) -> None:
    """Write a line to failures.jsonl for each picture that a reward, by name, could not score.

    An evaluation that is done again replaces its lines.
    """
    file = run / "failures.jsonl"
    lines = [
        json.dumps(
            {
                "iteration": iteration,
                "evaluation": evaluation,
                "reward": name,
                "prompt": failure.prompt,
                "reason": failure.reason,
            }
        )
        for name, found in failures.items()
        for failure in found
    ]
    known = read_lines(file) if evaluation else []
    others = [line for line in known if not (line["iteration"] == iteration and line["evaluation"])]
    if len(others) < len(known):
        atomic.write(file, "".join(json.dumps(line) + "\n" for line in others))
    if lines:
        atomic.append(file, "\n".join(lines))


def read_lines(file: Path) -> list[Figures]:
    """Read a file of JSON lines; nothing where it is missing.  A last line that a kill cut off is left out.

    Raises DamagedError for any other line that cannot be read.
    """
    *whole, _ = file.read_bytes().split(b"\n") if file.is_file() else [b""]
    return [parse_line(text, file, number) for number, text in enumerate(whole, 1)]


def parse_line(text: bytes, file: Path, number: int) -> Figures:
    """Parse a line of a file.  Raises DamagedError where it cannot be read."""
    try:
        line = json.loads(text)
        line["iteration"] + 0
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise atomic.DamagedError(
            f"{file}, line {number} is damaged: remove the line, or put back a copy of the file"
        ) from error
    return line


def read_metrics(run: Path) -> list[Figures]:
    """Read metrics.jsonl; nothing where the file is missing."""
    return read_lines(run / "metrics.jsonl")


def rewind(run: Path, iteration: int) -> None:
    """Drop what was recorded or drawn after `iteration`, which will be done again."""
    for folder in (*(run / "samples").glob("[0-9]*"), *(run / "groups").glob("[0-9]*")):
        if int(folder.name) > iteration:
            atomic.remove(folder)
    kept = _rewound(run / "metrics.jsonl", iteration)
    _rewound(run / "failures.jsonl", kept[-1]["iteration"] if kept else -1)


def amend(run: Path, figures: Figures) -> None:
    """Replace the line of an iteration in metrics.jsonl, or add it."""
    lines = read_metrics(run)
    if not any(line["iteration"] == figures["iteration"] for line in lines):
        return record(run, figures)
    lines = [figures if line["iteration"] == figures["iteration"] else line for line in lines]
    atomic.write(run / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def _rewound(file: Path, iteration: int) -> list[Figures]:
    """Keep the lines of a file up to an iteration, and return them."""
    lines = read_lines(file)
    kept = [line for line in lines if line["iteration"] <= iteration]
    if file.is_file():
        atomic.write(file, "".join(json.dumps(line) + "\n" for line in kept))
    return kept


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


def changes(lines: Sequence[Figures], base: int = 0) -> list[Change]:
    """Return how each measure has changed from the first to the last evaluation; nothing without an evaluation.

    base: the iteration from which on evaluations can be compared.
    """
    known = evaluated([line for line in lines if line["iteration"] >= base])
    first, last = next(iter(known), {}), next(iter(known[::-1]), {})
    shared = [key for key in first if key.startswith("eval/") and key in last]
    return [Change(key.removeprefix("eval/"), first[key], last[key]) for key in shared]
