"""Where a run begins: at its start, or at its newest undamaged checkpoint, with settings that may have changed since."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from neighbor_grpo.config import Config
from neighbor_grpo.errors import UserError
from neighbor_grpo.prompts.prompt import Prompt, prompt_hash
from neighbor_grpo.run import files
from neighbor_grpo.run.files import Figures
from neighbor_grpo.run.record import (
    Change,
    Record,
    changed_settings,
    describe_changes,
    read_record,
)
from neighbor_grpo.training import checkpoint


@dataclass(frozen=True)
class Beginning:
    """Hold where a run begins and what it has recorded by then."""

    record: Record  # as it is to be written
    checkpoint: Path | None = None  # None: at the start
    base: Figures | None = None  # line of the evaluation that later ones are compared with; None: still to be evaluated
    line: Figures = field(default_factory=dict)  # training figures of the last iteration, where its evaluation is done again
    recorded: int = 0  # iteration of the last line that stays
    seconds: float = 0.0  # spent on training
    said: tuple[str, ...] = ()  # what the user should know

    @property
    def iteration(self) -> int:
        """Return the number of iterations that are done."""
        return int(self.checkpoint.name) if self.checkpoint else 0


def beginning(run: Path, config: Config, prompts: Sequence[Prompt], evaluated: Sequence[Prompt], resume: bool) -> Beginning:
    """Return where a run begins; change nothing, except that damaged checkpoints are set aside.

    Raises UserError where it cannot be resumed: other training prompts, a setting that may not change, nothing to resume from.
    """
    hashes = {"train": prompt_hash(prompts), "evaluation": prompt_hash(evaluated)}
    fresh = Record(config.model_dump(mode="json"), hashes)
    if not resume:
        return Beginning(fresh)
    old, lines = read_record(run), files.read_metrics(run)
    found, said = checkpoint.newest(run / "checkpoints")
    if found is None and lines:
        raise UserError(
            f"{run} has recorded {len(lines) - 1} iterations and has no checkpoint: put back a copy of {run / 'checkpoints'}, "
            "or start a new run"
        )
    iteration = int(found.name) if found else 0
    changes = _changes(run, old, fresh, iteration, config.prompts.path)
    record = replace(fresh, changes=(*old.changes, *changes), release=old.release)
    kept = [line for line in lines if line["iteration"] <= iteration]
    for n in range(max(iteration, len(kept))):  # that of the last iteration may be in the checkpoint
        if n >= len(kept) or kept[n]["iteration"] != n:
            raise UserError(f"{run / 'metrics.jsonl'} has no line of iteration {n}: put back a copy of the file")
    anew = any(change.measured for change in changes)
    last = kept[-1] if kept and kept[-1]["iteration"] == iteration else {}
    return Beginning(
        record,
        found,
        None if anew or not kept else kept[record.base],
        {key: value for key, value in last.items() if not key.startswith(("eval", "time/evaluate"))},
        len(kept) - 1,
        sum(map(files.training_seconds, kept)),
        (*said, *describe_changes(changes)),
    )


def _changes(run: Path, old: Record, new: Record, iteration: int, path: str) -> list[Change]:
    """Return what has changed since the run was begun or last resumed.  Raises UserError for what may not change."""
    changes = changed_settings(old, new.settings, iteration)
    if old.prompts["train"] != new.prompts["train"]:
        raise UserError(f"the prompts in {path} are not those that {run} began with: put the file back, or start a new run")
    if old.prompts["evaluation"] != new.prompts["evaluation"] and not any(change.measured for change in changes):
        changes.append(Change(iteration, "evaluation prompts", old.prompts["evaluation"], new.prompts["evaluation"]))
    return changes


def check_recorded(run: Path, begun: Beginning, unrecorded: Mapping[str, float] | None) -> None:
    """Raise UserError where neither metrics.jsonl nor the checkpoint has the figures of the last iteration."""
    if begun.checkpoint and begun.base and begun.recorded < begun.iteration and not unrecorded:
        raise UserError(f"{run / 'metrics.jsonl'} has no line of iteration {begun.recorded + 1}: put back a copy of the file")
