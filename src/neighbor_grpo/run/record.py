"""The record of a run, run.json: its settings as they are in force, their changes, its prompts, and how it ended.

config.yaml is for people, who may edit it; the record says what the run has been trained with.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from neighbor_grpo.config import configured
from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic

FILE = "run.json"
CONFIG = "config.yaml"  # written last when a run begins: it makes a directory a run
COMPARISON = "comparison.yaml"  # in the directory of a comparison, whose runs are two folders below
Ending = Literal["finished", "diverged"]

# What may change when a run is resumed; a dot at the end stands for a whole section.  Everything else decides what the
# trained weights are, and another value would make a mixture of two runs.  Prompts may come from another place: their hashes
# are compared.
MAY_CHANGE = (
    "run_dir", "iterations", "seconds", "save_every", "keep_checkpoints", "device", "batch.", "evaluate.", "optimizer.lr",
    "optimizer.weight_decay", "optimizer.grad_clip", "optimizer.warmup", "optimizer.decay", "ema.decay", "reward.scorers.",
    "reward.overlap", "reward.max_failed", "reward.watch", "prompts.path", "prompts.key", "prompts.split", "prompts.metadata",
    "prompts.eval_path", "prompts.eval_key", "prompts.eval_split", "prompts.cache_dir", "prompts.cache_gb", "model.compile",
    "model.gradient_checkpointing", "model.attention", "trackers.",
)  # fmt: skip
# What makes evaluations before and after the change different measurements
_MEASURED = (
    "evaluate.prompts", "evaluate.skip", "evaluate.seeds", "evaluate.num_steps", "evaluate.solver",
    "evaluate.height", "evaluate.width", "evaluate.num_frames", "evaluate.guidance_scale", "evaluate.cfg", "prompts.eval_path",
    "reward.watch", "evaluation prompts",
)  # fmt: skip


@dataclass(frozen=True)
class Change:
    """Hold a setting that was changed when the run was resumed after so many iterations."""

    iteration: int
    key: str
    before: Any
    after: Any

    @property
    def measured(self) -> bool:
        """Return whether evaluations before and after it cannot be compared."""
        return self.key in _MEASURED


@dataclass(frozen=True)
class Record:
    """Hold what run.json says."""

    settings: Mapping[str, Any]
    prompts: Mapping[str, str]  # hashes of the training and evaluation prompts
    changes: tuple[Change, ...] = ()
    ended: Ending | None = None
    release: str = version("neighbor-grpo")

    @property
    def base(self) -> int:
        """Return the iteration whose evaluation the later ones are compared with."""
        return max((change.iteration for change in self.changes if change.measured), default=0)


def is_run(place: Path) -> bool:
    """Return whether a run has begun in a directory."""
    return (place / CONFIG).is_file()


def read_record(run: Path) -> Record:
    """Read run.json.  Raises UserError where it is missing, damaged, or of another version."""
    if not (run / FILE).is_file():
        raise UserError(f"{run} has no {FILE}: the run is not whole, or an older release made it; start a new run")
    found = atomic.read_json(run / FILE)
    try:
        changes = tuple(Change(**change) for change in found["changes"])
        return Record(found["settings"], found["prompts"], changes, found["ended"], found["release"])
    except (KeyError, TypeError) as error:
        raise atomic.DamagedError(f"{run / FILE} is damaged: {error}") from error


def write_record(run: Path, record: Record) -> None:
    """Write run.json."""
    atomic.write(run / FILE, json.dumps({"version": atomic.VERSION, **asdict(record)}, indent=1) + "\n")


def end(run: Path, how: Ending | None) -> None:
    """Record how a run ended; None: it trains again."""
    record = read_record(run)
    if record.ended != how:
        write_record(run, replace(record, ended=how))


def ended(run: Path) -> Ending | None:
    """Return how a run ended, None while it may be resumed."""
    return read_record(run).ended if is_run(run) else None


def changed_settings(record: Record, settings: Mapping[str, Any], iteration: int) -> list[Change]:
    """Compare settings with those of the record.  Raises UserError where one differs that may not change.

    A setting that is newer than the record had its default.
    """
    old, new = (dict(_flat(one)) for one in (configured(dict(record.settings)).model_dump(mode="json"), settings))
    changes = [
        Change(iteration, key, old.get(key), new.get(key))
        for key in {**old, **new}
        if key not in old or key not in new or old[key] != new[key]
    ]
    for change in changes:
        known = change.key in MAY_CHANGE and change.key in old and change.key in new  # a whole section may not come or go
        if not known and not change.key.startswith(tuple(key for key in MAY_CHANGE if key[-1] == ".")):
            raise UserError(
                f"{change.key} was {_short(change.before)} and cannot be {_short(change.after)} when a run is resumed: set it "
                "back in config.yaml, or start a new run"
            )
    return [change for change in changes if change.key != "run_dir"]


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested settings by their dotted keys."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else text[:77] + "..."


def describe_changes(changes: Sequence[Change]) -> list[str]:
    """Word each change in a line."""
    return [f"from iteration {c.iteration}: {c.key} = {_short(c.after)}, {_short(c.before)} before" for c in changes]
