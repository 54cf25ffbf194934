"""An evaluation in a directory: pictures/, scores-<rank>.jsonl, settings.json, result.json, table.md, gallery.html.

What is there is not computed again, so an evaluation that was stopped goes on, and one more measure costs that measure alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from neighbor_grpo.errors import UserError
from neighbor_grpo.evaluate.ledger import Ledger, short
from neighbor_grpo.evaluate.metrics import Metric, measure
from neighbor_grpo.evaluate.pictures import Pictures
from neighbor_grpo.evaluate.statistics import interval, paired, prompt_means
from neighbor_grpo.prompts.reading import Prompt, for_each
from neighbor_grpo.rewards.score import score
from neighbor_grpo.rewards.scorer import Scorer

Tables = dict[str, tuple[np.ndarray, list[str]]]  # of every measure: values [P, S], and why some are missing


def claim(out: Path, settings: Mapping[str, Any]) -> None:
    """Make `out` the place of an evaluation with these settings.  Raises UserError where it is another's."""
    file = out / "settings.json"
    if file.is_file():
        there = json.loads(file.read_text())
        if odd := next((key for key in {*there, *settings} if there.get(key) != settings.get(key)), None):
            raise UserError(
                f"{out} holds another evaluation: its {odd} is {there.get(odd)!r}, not {settings.get(odd)!r}; "
                "choose another --out"
            )
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and holds no evaluation: choose another --out")
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings, indent=2) + "\n")


def judge(
    out: Path,
    pictures: Pictures,
    prompts: Sequence[Prompt],
    rewards: Mapping[str, Scorer],
    metrics: Mapping[str, Metric],
    portion: int = 16,
) -> None:
    """Write every missing score to the ledger in `out`, this rank's share of the prompts, `portion` prompts at a time.

    Rewards find in a picture's metadata, beside its prompt's, its number among all, "picture".
    """
    state = PartialState()
    ledger = Ledger(out, state.process_index)
    ids = {name: short(scorer.identity) for name, scorer in rewards.items()}
    single = {name: metric for name, metric in metrics.items() if not getattr(metric, "whole_set", False)}
    mine = range(state.process_index, len(prompts), state.num_processes)
    for start in range(0, len(mine), portion):
        numbers = list(mine[start : start + portion])
        todo = {name: [p for p in numbers if not ledger.done(name, ids.get(name, ""), p)] for name in [*rewards, *single]}
        if not any(todo.values()):
            continue
        images = pictures(numbers)
        for name, missing in todo.items():
            if not missing:
                continue
            here = images[[numbers.index(p) for p in missing]]
            if name in single:
                values = measure(single[name], here, [prompts[p].text for p in missing])
                for p, value in zip(missing, values.tolist(), strict=True):
                    ledger.write(name, "", p, [value], {})
                continue
            texts, metadata = for_each([prompts[p] for p in missing], pictures.seeds)
            places = [p * pictures.seeds + s for p in missing for s in range(pictures.seeds)]
            metadata = [known | {"picture": n} for known, n in zip(metadata, places, strict=True)]
            scores = score(rewards[name], here.flatten(0, 1), texts, metadata, pictures.seeds)
            reasons = {failure.index: failure.reason for failure in scores.failures}
            for row, p in enumerate(missing):
                own = range(row * pictures.seeds, (row + 1) * pictures.seeds)
                values = [None if n in reasons else scores.values[n].item() for n in own]
                ledger.write(name, ids[name], p, values, {n % pictures.seeds: reasons[n] for n in own if n in reasons})
    state.wait_for_everyone()
    if state.is_main_process:
        for name, metric in metrics.items():
            if name not in single and not ledger.done(name, "", 0):
                images = torch.cat([pictures([p]) for p in range(len(prompts))])
                value = measure(metric, images, [prompt.text for prompt in prompts]).item()
                for p in range(len(prompts)):  # one number for the set, written beside every prompt
                    ledger.write(name, "", p, [value], {})
    state.wait_for_everyone()


def result(
    out: Path,
    tables: Tables,
    prompts: int,
    rewards: Mapping[str, Scorer],
    metrics: Mapping[str, Metric],
    max_failed: float,
    against: Path | None = None,
) -> dict[str, Any]:
    """Means with their intervals over prompts, what failed, every setting, and the comparison with another evaluation.

    A mean of which more than a share `max_failed` of the pictures is missing is None.
    """
    found: dict[str, Any] = {"values": {}, "intervals": {}, "failed": {}, "reasons": {}}
    for name, (values, reasons) in tables.items():
        failed = int(np.isnan(values).sum())
        kept = failed <= max_failed * values.size
        found["values"][name] = float(np.nanmean(prompt_means(values))) if kept else None
        if kept and not getattr(metrics.get(name), "whole_set", False):
            found["intervals"][name] = interval(prompt_means(values))
        if failed:
            found["failed"][name], found["reasons"][name] = failed, sorted(set(reasons))[:5]
    scorers = {name: scorer.identity for name, scorer in rewards.items()}
    found["settings"] = json.loads((out / "settings.json").read_text()) | {"scorers": scorers}
    if against:
        compared = _compared(found["settings"], tables, against, prompts, rewards, metrics)
        found["against"] = {"evaluation": str(against)} | compared
    return found


def read_tables(out: Path, prompts: int, rewards: Mapping[str, Scorer], metrics: Mapping[str, Metric]) -> Tables:
    """(values [P, S], reasons) of every measure; KeyError where one is missing."""
    ledger = Ledger(out)
    ids = {name: short(scorer.identity) for name, scorer in rewards.items()} | dict.fromkeys(metrics, "")
    return {name: ledger.table(name, scorer, prompts) for name, scorer in ids.items()}


def _compared(
    settings: Mapping[str, Any],
    tables: Tables,
    against: Path,
    prompts: int,
    rewards: Mapping[str, Scorer],
    metrics: Mapping[str, Metric],
) -> dict[str, Any]:
    if not (against / "settings.json").is_file():
        raise UserError(f"--against {against}: no evaluation there")
    other = json.loads((against / "settings.json").read_text())
    for key in ("prompts_sha256", "number_of_prompts", "seeds"):
        if other[key] != settings[key]:
            raise UserError(f"--against {against}: its {key} is {other[key]}, not {settings[key]}; pairs need the same prompts")
    try:
        theirs = read_tables(against, prompts, rewards, metrics)
    except KeyError as error:
        raise UserError(
            f"--against {against}: it has no {error.args[0][0]} by this scorer; run that evaluation again, with the same "
            "measures"
        ) from error
    differ = {key: [settings[key], other.get(key)] for key in settings if key != "scorers" and settings[key] != other.get(key)}
    single = [name for name in tables if not getattr(metrics.get(name), "whole_set", False)]
    return {"differs": differ, "measures": {name: asdict(paired(tables[name][0], theirs[name][0])) for name in single}}
