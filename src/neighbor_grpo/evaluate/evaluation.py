"""An evaluation as a directory: pictures/, scores-<rank>.jsonl, settings.json, result.json, table.md, gallery.html.

What the directory already holds is not computed again: an evaluation that was stopped resumes, and one more measure costs
only that measure.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from neighbor_grpo.console import bar
from neighbor_grpo.errors import UserError
from neighbor_grpo.evaluate.measures import Measures
from neighbor_grpo.evaluate.pictures import Pictures
from neighbor_grpo.evaluate.statistics import interval, paired, prompt_means
from neighbor_grpo.files import atomic
from neighbor_grpo.files.ledger import Ledger, Table, Values
from neighbor_grpo.files.lock import LOCK, Lock
from neighbor_grpo.prompts.prompt import Prompt
from neighbor_grpo.run.files import abandon, claim_free


@contextmanager
def claimed(out: Path | None, main: bool) -> Iterator[Path]:
    """Make and lock the directory of an evaluation for a while; None: the first free one of evaluations/001, ...

    main: this is the rank that locks and writes.  Raises UserError where another process evaluates into it.
    """
    if not main:
        assert out
        yield out
        return
    if out is None:
        out, lock = claim_free(Path("evaluations"))
    else:
        out.mkdir(parents=True, exist_ok=True)
        lock = Lock.take(out)
    try:
        yield out
    finally:
        abandon(out, lock)


def begin(out: Path, settings: Mapping[str, Any]) -> None:
    """Make `out`, which this process has locked, the directory of an evaluation with these settings.

    Raises UserError where it holds something else, or an evaluation with other settings.
    """
    file = out / "settings.json"
    if file.is_file():
        known = read_settings(out)
        if other := next((key for key in {**known, **settings} if known.get(key) != settings.get(key)), None):
            raise UserError(
                f"{out} holds another evaluation: {other} is {known.get(other)!r}, not {settings.get(other)!r}; "
                "choose another --out"
            )
    elif {path.name for path in out.iterdir() if not atomic.is_partial(path.name)} - {LOCK, "pictures"}:
        raise UserError(f"{out} is not empty and holds no evaluation: choose another --out")
    atomic.tidy(out)
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    atomic.write(file, json.dumps({"version": atomic.VERSION, **settings}, indent=2) + "\n")


def read_settings(out: Path) -> dict[str, Any]:
    """Read settings.json."""
    return {key: value for key, value in atomic.read_json(out / "settings.json").items() if key != "version"}


def measure_all(out: Path, pictures: Pictures, prompts: Sequence[Prompt], measures: Measures, together: int = 16) -> None:
    """Write every missing value to the ledger in `out`; ranks share the prompts and take `together` of them at once."""
    state = PartialState()
    ledger = Ledger(out, state.process_index)
    mine = range(state.process_index, len(prompts), state.num_processes)
    for start in bar(range(0, len(mine), together), "measuring pictures"):
        _measure_prompts(ledger, pictures, prompts, measures, mine[start : start + together])
    state.wait_for_everyone()
    if state.is_main_process:
        for name in measures.by_set:
            if not ledger.complete(name, measures.keys[name], 0):
                _measure_set(ledger, pictures, prompts, measures, name)
    state.wait_for_everyone()


def _measure_prompts(
    ledger: Ledger, pictures: Pictures, prompts: Sequence[Prompt], measures: Measures, numbers: Sequence[int]
) -> None:
    """Write the missing values of the prompts with these numbers; read pictures only if a value is missing."""
    keys = measures.keys
    missing = {name: [n for n in numbers if not ledger.complete(name, keys[name], n)] for name in measures.by_prompt}
    if not any(missing.values()):
        return
    images = pictures.read(numbers)
    for name, some in missing.items():
        if some:
            chosen = images[[numbers.index(n) for n in some]]
            values = measures.measure(name, chosen, [prompts[n] for n in some], some)
            for n, entry in zip(some, values, strict=True):
                ledger.write(name, keys[name], n, entry)


def _measure_set(ledger: Ledger, pictures: Pictures, prompts: Sequence[Prompt], measures: Measures, name: str) -> None:
    """Write a metric's one number for all pictures, the same beside every prompt."""
    images = torch.cat([pictures.read([n]) for n in range(len(prompts))])
    value = measures.metrics[name].measure(images, [prompt.text for prompt in prompts]).item()
    for n in range(len(prompts)):
        ledger.write(name, measures.keys[name], n, Values((value,)))


def read_tables(out: Path, prompts: int, measures: Measures) -> dict[str, Table]:
    """Read what each measure says of all prompts.  Raises UserError where `out` does not have it."""
    ledger = Ledger(out)
    for name, key in measures.keys.items():
        if not ledger.has(name, key, prompts):
            raise UserError(f"{out} has no {name} with these settings: run that evaluation again with the same measures")
    return {name: ledger.table(name, key, prompts) for name, key in measures.keys.items()}


def summarize(out: Path, tables: Mapping[str, Table], measures: Measures, max_failed: float) -> dict[str, Any]:
    """Return means with their intervals over prompts, failures with their reasons, and every setting.

    A mean is None where more than a share `max_failed` of the pictures has no score.
    """
    result: dict[str, Any] = {"values": {}, "intervals": {}, "failed": {}, "reasons": {}}
    for name, table in tables.items():
        failed = int(np.isnan(table.values).sum())
        enough = failed <= max_failed * table.values.size
        result["values"][name] = float(np.nanmean(prompt_means(table.values))) if enough else None
        if enough and name not in measures.by_set:
            result["intervals"][name] = interval(prompt_means(table.values))
        if failed:
            result["failed"][name], result["reasons"][name] = failed, sorted(set(table.reasons))[:5]
    result["settings"] = read_settings(out) | {"scorers": measures.scorers}
    return result


def compare_with(
    against: Path, settings: Mapping[str, Any], tables: Mapping[str, Table], prompts: int, measures: Measures
) -> dict[str, Any]:
    """Compare an evaluation, by its settings and tables, with another one, picture by picture.

    Raises UserError unless both have the same prompts, seeds and measures.
    """
    if not (against / "settings.json").is_file():
        raise UserError(f"--against {against}: no evaluation there; give the --out directory of one")
    other = read_settings(against)
    for key in ("prompts_sha256", "number_of_prompts", "seeds"):
        if other.get(key) != settings[key]:
            raise UserError(
                f"--against {against}: {key} is {other.get(key)}, not {settings[key]}; give one with the same prompts and seeds"
            )
    others = read_tables(against, prompts, measures)
    differences = {
        key: [settings[key], other.get(key)] for key in settings if key != "scorers" and settings[key] != other.get(key)
    }
    pairs = {name: asdict(paired(tables[name].values, others[name].values)) for name in measures.by_prompt}
    return {"evaluation": str(against), "differs": differences, "measures": pairs}
