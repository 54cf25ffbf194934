"""The checks of a run's files, whether it is finished, has failed, or still runs."""

from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from neighbor_grpo.run import files
from neighbor_grpo.run.findings import MOST_CLIPPED, ROUNDING, TRIAL, Finding, Verdict, floor_finding
from neighbor_grpo.run.history import History, growth
from neighbor_grpo.run.outcome import drift, hacking, throughput
from neighbor_grpo.training.doctor.statistics import change

REASON = 300  # characters of a reason that are shown
CERTAIN = 3.3  # standard errors: p = 0.001, two-sided
THIN = 0.02  # spread within groups over that of all evaluation pictures
GROWN = 10.0  # of a gradient norm


def findings_after(run: Path) -> Iterator[Finding]:
    """Say what happened in a run."""
    history = History(run, files.read_config(run), files.read_metrics(run))
    yield _state(history)
    yield from _failures(history)
    if not history.steps:
        return
    rate = list(_rate(history, _moved(history)))
    yield from rate
    yield from _spread(history)
    yield from _ratio(history)
    if not any(finding.name == "rate_low" and finding.verdict != "ok" for finding in rate):
        yield from _frozen(history)
    if len(history.evaluations) > 1:
        yield from hacking(history)
        yield from drift(history)
    yield from throughput(history)


def _state(history: History) -> Finding:
    done, total = len(history.steps), history.config.iterations
    if files.diverged(history.run):
        text = f"the loss or the gradient was not finite after {done} iterations"
        return Finding("diverged", "error", text, float(done), float(total))
    if files.finished(history.run):
        return Finding("state", "ok", f"finished after {done} iterations", float(done), float(total))
    return Finding("state", "note", f"not finished: {done} of {total} iterations are recorded", float(done), float(total))


def _failures(history: History) -> Iterator[Finding]:
    """Count the pictures without a score, and say since when."""
    lines = files.read_lines(history.run / "failures.jsonl")
    pictures = {
        False: history.config.prompts.per_iteration * history.config.method.group_size,
        True: history.evaluated_pictures,
    }
    most = history.config.reward.max_failed
    for name in dict.fromkeys([*history.config.reward.train, *(line["reward"] for line in lines)]):
        own = [line for line in lines if line["reward"] == name]
        counts = Counter((line["iteration"], bool(line.get("evaluation"))) for line in own)
        failed = history.series(f"failed/{name}") / pictures[False]
        worst = max([*(count / pictures[place[1]] for place, count in counts.items()), *failed, 0.0])
        if not worst:
            yield Finding("scorer_failures", "ok", f"{name} scored every picture", 0.0, most)
            continue
        since = min((iteration for iteration, _ in counts), default=1 + int(np.argmax(failed > 0)))
        verdict: Verdict = "error" if worst > most else "warning"
        reason = f", the first reason: {own[0]['reason'][:REASON]}" if own else ""
        text = f"{name} could not score up to {worst:.0%} of an iteration's pictures, since iteration {since}{reason}"
        yield Finding("scorer_failures", verdict, text, worst, most)


def _spread(history: History) -> Iterator[Finding]:
    """Look for rewards that do not differ within groups."""
    for name in history.config.reward.train:
        flat = history.series(f"flat_groups/{name}") / history.config.prompts.per_iteration
        spread, reward = history.series(f"spread/{name}"), history.series(f"reward/{name}")
        if not len(flat):
            continue
        share = float(np.nanmean(flat))
        base = history.lines[0].get(f"eval_spread/{name}", 0.0)
        thin = float(np.median(spread)) / base if base else 1.0
        if share == 1 and np.ptp(reward) == 0 and not base:
            yield Finding("reward_range", "error", f"{name} was {reward[0]:g} for every picture", 0.0, 0.0)
        elif share == 1:
            yield Finding("spread", "error", f"no group had a spread in {name}, in any iteration", share, 0.5)
        elif share > 0.5:
            yield Finding("spread", "warning", f"{share:.0%} of the groups had no spread in {name}", share, 0.5)
        elif thin < THIN:
            text = f"{name} differs within groups by {thin:.2%} of what it differs over all evaluation pictures"
            yield Finding("spread", "warning", text, thin, THIN)
        else:
            yield Finding("spread", "ok", f"{name} had a spread in {1 - share:.0%} of the groups", share, 0.5)


def _ratio(history: History) -> Iterator[Finding]:
    """Look at the noise floor and at the share that is clipped."""
    if not len(floors := history.series("ratio/noise_floor")):
        return
    floor = floor_finding(float(np.median(floors)), history.config)
    if floor:
        yield floor
    clipped = float(np.median(history.series("ratio/clipped")))
    text = f"the clip cut off {clipped:.0%} of the decisions (median of the iterations)"
    yield Finding("clipped", "warning" if clipped > MOST_CLIPPED else "ok", text, clipped, MOST_CLIPPED)


def _moved(history: History) -> float | None:
    """Return how far the sample pictures have moved from those before training; None without two sets of them."""
    folders = sorted(path for path in (history.run / "samples").glob("[0-9]*") if path.is_dir())
    if len(folders) < 2:
        return None
    first, last = ({file.name: _pixels(file) for file in sorted(folder.glob("*.png"))} for folder in (folders[0], folders[-1]))
    squares = [np.square(last[name] - a).mean() for name, a in first.items() if name in last and last[name].shape == a.shape]
    return float(np.mean(squares)) ** 0.5 if squares else None


def _pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"), dtype=float) / 255


def _rate(history: History, moved: float | None) -> Iterator[Finding]:
    """Look for a rate that moves nothing, or that breaks the pictures; and for a reward that falls."""
    done, norms, clipped = len(history.steps), history.series("grad_norm"), history.series("ratio/clipped")
    if len(norms) and not norms.any():  # nothing is learned at any rate
        return
    ahead = None if moved is None else moved * max(history.config.iterations, TRIAL) / done
    if ahead is not None and moved is not None and ahead < ROUNDING:
        text = f"the pictures have moved by {moved:.2g} in {done} iterations, which stays below the rounding to 8 bits"
        yield Finding("rate_low", "error", text, ahead, ROUNDING)
        yield from _noise(history)
        return
    fallen = [
        name for name, weight in history.config.reward.train.items() if _change(history, name) * np.sign(weight) < -CERTAIN
    ]
    wrong = [name for name in history.config.reward.train if _change(history, name) < -CERTAIN]
    grown = growth(norms)
    broken = len(clipped) > 0 and float(np.median(clipped)) > MOST_CLIPPED
    if (fallen and (broken or grown > GROWN)) or grown > GROWN**2:
        cut = f"the clip cut off {np.median(clipped):.0%} of the decisions" if broken else "little was clipped"
        what = f"{fallen[0]} fell" if fallen else "the reward did not fall yet"
        text = f"{what}, the gradient norm is {grown:.2g} times that of the beginning, and {cut}"
        yield Finding("rate_high", "error", text, grown, GROWN)
    elif names := fallen or wrong:
        z = _change(history, names[0])
        yield Finding("reward_falls", "error", f"{names[0]} has fallen by {-z:.1f} standard errors", z, -CERTAIN)
    else:
        name = next(iter(history.config.reward.train))
        z = _change(history, name)
        text = f"{name} has changed by {z:+.1f} standard errors, and the pictures by {moved or 0:.2g}"
        yield Finding("rate_high", "ok", text, grown, GROWN)


def _change(history: History, name: str) -> float:
    """Return the change of a trained reward in standard errors: of its evaluations, or of its iterations without two."""
    z = history.rise(name) if len(history.evaluations) > 1 else None
    return z if z is not None else change(history.series(f"reward/{name}"))[1]


def _noise(history: History) -> Iterator[Finding]:
    """Look for scores that differ although the pictures do not."""
    for name in history.config.reward.train:
        z = history.rise(name) if len(history.evaluations) > 1 else None
        first, last = (history.evaluations[n].get(f"eval/{name}") for n in (0, -1))
        if z is not None and first is not None and abs(z) > 0.1:
            text = f"{name} went from {first:.4g} to {last:.4g} on pictures that have not changed"
            yield Finding("reward_noise", "error", text, abs(z), 0.1)


def _frozen(history: History) -> Iterator[Finding]:
    """Look for a gradient of zero, and for weights that did not change between two checkpoints."""
    norms = history.series("grad_norm")
    flat = [history.series(f"flat_groups/{name}") for name in history.config.reward.train]
    groups = history.config.prompts.per_iteration
    if len(norms) and not norms.any() and any(len(one) and one.min() < groups for one in flat):
        yield Finding("frozen", "error", "rewards differed, but every gradient was exactly 0", 0.0, 0.0)
        return
    folders = sorted(path for path in (history.run / "checkpoints").glob("[0-9]*") if path.is_dir())[-2:]
    for one, other in combinations(folders, 2):
        same, total = _unchanged(one / "weights.safetensors", other / "weights.safetensors")
        if total and not norms[int(one.name) :].any():
            continue
        verdict: Verdict = (
            "ok" if not same else "error" if len(same) == total else "warning" if len(same) > total / 20 else "note"
        )
        text = f"{len(same)} of {total} trained tensors are the same in iterations {int(one.name)} and {int(other.name)}"
        yield Finding("frozen", verdict, text + (f": {', '.join(same[:3])}" if same else ""), len(same) / total, 0.05)


def _unchanged(one: Path, other: Path) -> tuple[list[str], int]:
    """Return the names of the tensors with equal bits in both files, and the number of tensors."""
    with safe_open(one, "pt") as a, safe_open(other, "pt") as b:
        names = sorted(set(a.keys()) & set(b.keys()))
        return [name for name in names if torch.equal(a.get_tensor(name), b.get_tensor(name))], len(names)
