"""The checks of a run's files, whether it is finished, has failed, or still runs."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from neighbor_grpo.config import Config
from neighbor_grpo.doctor.statistics import change
from neighbor_grpo.run import files
from neighbor_grpo.run.findings import MOST_CLIPPED, Finding, Verdict, floor_finding

CERTAIN = 3.3  # standard errors: p = 0.001, two-sided
FALLEN = 2.5  # of a watched reward, p = 0.006 at most: its errors are counted as if the noises differed
EIGHT_BITS = 1 / 255
THIN = 0.02  # spread within groups over that of all evaluation pictures
GROWN = 10.0  # of a gradient norm
VARIETY = 0.7  # share of the diversity before training
AWAY = {"scenes_distance": 3.0, "grid_artefacts": 2.0}  # metrics of which more is worse: factor that cannot be style alone
SLOWER = 2.0  # of a phase against the others
SHARE = 0.5  # of an iteration that one phase of waiting may take


@dataclass(frozen=True)
class Record:
    """Hold what a run has written."""

    run: Path
    config: Config
    lines: Sequence[files.Figures]

    @property
    def steps(self) -> list[files.Figures]:
        """Return the lines of iterations."""
        return [line for line in self.lines if line["iteration"] > 0]

    @property
    def evaluations(self) -> list[files.Figures]:
        """Return the lines with an evaluation."""
        return files.evaluated(self.lines)

    def series(self, key: str) -> np.ndarray:
        """Return a figure of all iterations that have it."""
        return np.array([line[key] for line in self.steps if line.get(key) is not None], dtype=float)

    def rise(self, name: str, n: int = -1) -> float | None:
        """Return how far a reward has risen at evaluation n, in standard errors.

        The errors are those of two independent sets of pictures; the noises are the same, so the true ones are smaller.
        """
        first, last = self.evaluations[0], self.evaluations[n]
        keys = f"eval/{name}", f"eval_spread/{name}"
        if not all(key in line for key in keys for line in (first, last)):
            return None
        pictures = self.config.evaluate.prompts * self.config.evaluate.seeds
        error = ((first[keys[1]] ** 2 + last[keys[1]] ** 2) / pictures) ** 0.5
        rise = last[keys[0]] - first[keys[0]]
        return rise / error if error else float(np.sign(rise)) * float("inf") if rise else 0.0


def findings_after(run: Path) -> Iterator[Finding]:
    """Say what happened in a run."""
    record = Record(run, files.read_config(run), files.read_metrics(run))
    yield _state(record)
    yield from _failures(record)
    if not record.steps:
        return
    rate = list(_rate(record, _moved(record)))
    yield from rate
    yield from _spread(record)
    yield from _ratio(record)
    if not any(finding.name == "rate_low" and finding.verdict != "ok" for finding in rate):
        yield from _frozen(record)
    if len(record.evaluations) > 1:
        yield from _hacking(record)
        yield from _drift(record)
    yield from _throughput(record)


def _state(record: Record) -> Finding:
    done, total = len(record.steps), record.config.iterations
    if files.diverged(record.run):
        text = f"the loss or the gradient was not finite after {done} iterations"
        return Finding("diverged", "error", text, float(done), float(total))
    if files.finished(record.run):
        return Finding("state", "ok", f"finished after {done} iterations", float(done), float(total))
    return Finding("state", "note", f"not finished: {done} of {total} iterations are recorded", float(done), float(total))


def _failures(record: Record) -> Iterator[Finding]:
    """Count the pictures without a score, and say since when."""
    file = record.run / "failures.jsonl"
    lines = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    samples = record.config.prompts.per_iteration * record.config.method.group_size
    most = record.config.reward.max_failed
    for name in dict.fromkeys([*record.config.reward.train, *(line["reward"] for line in lines)]):
        own = [line for line in lines if line["reward"] == name]
        failed = record.series(f"failed/{name}")
        counts = {line["iteration"]: 0 for line in own}
        for line in own:
            counts[line["iteration"]] += 1
        worst = max([*counts.values(), *failed, 0]) / samples
        if not worst:
            yield Finding("scorer_failures", "ok", f"{name} scored every picture", 0.0, most)
            continue
        since = min(counts, default=1 + int(np.argmax(failed > 0)))
        verdict: Verdict = "error" if worst > most else "warning"
        reason = f", the first reason: {own[0]['reason']}" if own else ""
        text = f"{name} could not score up to {worst:.0%} of an iteration's pictures, since iteration {since}{reason}"
        yield Finding("scorer_failures", verdict, text, worst, most)


def _spread(record: Record) -> Iterator[Finding]:
    """Look for rewards that do not differ within groups."""
    for name in record.config.reward.train:
        flat = record.series(f"flat_groups/{name}") / record.config.prompts.per_iteration
        spread, reward = record.series(f"spread/{name}"), record.series(f"reward/{name}")
        if not len(flat):
            continue
        share = float(np.nanmean(flat))
        base = record.lines[0].get(f"eval_spread/{name}", 0.0)
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


def _ratio(record: Record) -> Iterator[Finding]:
    """Look at the noise floor and at the share that is clipped."""
    if not len(floors := record.series("ratio/noise_floor")):
        return
    floor = floor_finding(float(np.median(floors)), record.config)
    if floor:
        yield floor
    clipped = float(np.median(record.series("ratio/clipped")))
    text = f"the clip cut off {clipped:.0%} of the decisions (median of the iterations)"
    yield Finding("clipped", "warning" if clipped > MOST_CLIPPED else "ok", text, clipped, MOST_CLIPPED)


def _moved(record: Record) -> float | None:
    """Return how far the sample pictures have moved from those before training; None without two sets of them."""
    folders = sorted(path for path in (record.run / "samples").glob("[0-9]*") if path.is_dir())
    if len(folders) < 2:
        return None
    first, last = ({file.name: _pixels(file) for file in sorted(folder.glob("*.png"))} for folder in (folders[0], folders[-1]))
    squares = [np.square(last[name] - a).mean() for name, a in first.items() if name in last and last[name].shape == a.shape]
    return float(np.mean(squares)) ** 0.5 if squares else None


def _pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"), dtype=float) / 255


def _rate(record: Record, moved: float | None) -> Iterator[Finding]:
    """Look for a rate that moves nothing, or that breaks the pictures; and for a reward that falls."""
    done = len(record.steps)
    ahead = None if moved is None else moved * record.config.iterations / done
    if ahead is not None and moved is not None and ahead < EIGHT_BITS:
        text = f"the pictures have moved by {moved:.2g} in {done} iterations (root mean square): less than one step of 8 bits"
        yield Finding("rate_low", "error", text, ahead, EIGHT_BITS)
        yield from _noise(record)
        return
    fallen = [name for name, weight in record.config.reward.train.items() if _change(record, name) * np.sign(weight) < -CERTAIN]
    wrong = [name for name in record.config.reward.train if _change(record, name) < -CERTAIN]
    norms, clipped = record.series("grad_norm"), record.series("ratio/clipped")
    grown = _growth(norms)
    broken = len(clipped) > 0 and float(np.median(clipped)) > MOST_CLIPPED
    if (fallen and (broken or grown > GROWN)) or grown > GROWN**2:
        cut = f"the clip cut off {np.median(clipped):.0%} of the decisions" if broken else "little was clipped"
        what = f"{fallen[0]} fell" if fallen else "the reward did not fall yet"
        text = f"{what}, the gradient norm is {grown:.2g} times that of the beginning, and {cut}"
        yield Finding("rate_high", "error", text, grown, GROWN)
    elif names := fallen or wrong:
        z = _change(record, names[0])
        yield Finding("reward_falls", "error", f"{names[0]} has fallen by {-z:.1f} standard errors", z, -CERTAIN)
    else:
        name = next(iter(record.config.reward.train))
        z = _change(record, name)
        text = f"{name} has changed by {z:+.1f} standard errors, and the pictures by {moved or 0:.2g}"
        yield Finding("rate_high", "ok", text, grown, GROWN)


def _change(record: Record, name: str) -> float:
    """Return the change of a trained reward in standard errors: of its evaluations, or of its iterations without two."""
    z = record.rise(name) if len(record.evaluations) > 1 else None
    return z if z is not None else change(record.series(f"reward/{name}"))[1]


def _growth(values: np.ndarray) -> float:
    """Return the median of the last third over that of the first, of the values above 0; 1 for a short series."""
    values = values[values > 0]
    n = len(values) // 3
    return float(np.median(values[-n:]) / np.median(values[:n])) if n >= 2 else 1.0


def _noise(record: Record) -> Iterator[Finding]:
    """Look for scores that differ although the pictures do not."""
    for name in record.config.reward.train:
        z = record.rise(name) if len(record.evaluations) > 1 else None
        first, last = (record.evaluations[n].get(f"eval/{name}") for n in (0, -1))
        if z is not None and first is not None and abs(z) > 0.1:
            text = f"{name} went from {first:.4g} to {last:.4g} on pictures that have not changed"
            yield Finding("reward_noise", "error", text, abs(z), 0.1)


def _frozen(record: Record) -> Iterator[Finding]:
    """Look for a gradient of zero, and for weights that did not change between two checkpoints."""
    norms = record.series("grad_norm")
    flat = [record.series(f"flat_groups/{name}") for name in record.config.reward.train]
    groups = record.config.prompts.per_iteration
    if len(norms) and not norms.any() and any(len(one) and one.min() < groups for one in flat):
        yield Finding("frozen", "error", "rewards differed, but every gradient was exactly 0", 0.0, 0.0)
        return
    folders = sorted(path for path in (record.run / "checkpoints").glob("[0-9]*") if path.is_dir())[-2:]
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


def _hacking(record: Record) -> Iterator[Finding]:
    """Look for a watched measure that gets worse while the trained reward rises."""
    trained = [record.rise(name) for name in record.config.reward.train]
    risen = all(z is None or z > CERTAIN for z in trained)
    found = False
    for name in record.config.watched:
        since = next((n for n in range(1, len(record.evaluations)) if _worse_from(record, name, n)), None)
        if since is None:
            continue
        found, iteration = True, record.evaluations[since]["iteration"]
        first, last = record.evaluations[0][f"eval/{name}"], record.evaluations[-1][f"eval/{name}"]
        text = f"{name} went from {first:.4g} to {last:.4g}, and is worse since iteration {iteration}"
        kind: tuple[str, Verdict] = ("hacking", "error") if risen else ("drift", "warning")
        yield Finding(*kind, text + (", while the trained reward rose" if risen else ""), last, first)
    if not found:
        yield Finding("hacking", "ok", "no watched measure got worse", record.evaluations[-1].get("eval/gap"))


def _worse_from(record: Record, name: str, n: int) -> bool:
    """Return whether a watched measure is worse than before training at evaluation n and ever after."""
    return all(_worse(record, name, later) for later in range(n, len(record.evaluations)))


def _worse(record: Record, name: str, n: int) -> bool:
    key, first, now = f"eval/{name}", record.evaluations[0], record.evaluations[n]
    if key not in first or key not in now:
        return False
    if name in AWAY:
        return now[key] > AWAY[name] * max(first[key], 0)
    z = record.rise(name, n)
    return z is not None and z < -FALLEN


def _drift(record: Record) -> Iterator[Finding]:
    """Look for pictures of a prompt that become alike."""
    first, last = (record.evaluations[n].get("eval/diversity") for n in (0, -1))
    if first and last is not None:
        share = last / first
        text = f"the diversity is {share:.0%} of that before training"
        yield Finding("drift", "warning" if share < VARIETY else "ok", text, share, VARIETY)


def _throughput(record: Record) -> Iterator[Finding]:
    """Look for a phase that waits, or that has become slower than the others."""
    phases = {p: record.series(f"time/{p}") for p in files.TRAINING_PHASES}
    phases = {p: seconds for p, seconds in phases.items() if len(seconds) == len(record.steps)}
    total = sum(phases.values(), np.zeros(len(record.steps)))
    medians = {p: float(np.median(seconds)) for p, seconds in phases.items()}
    most = max(medians, key=medians.__getitem__, default="")
    if not most:
        return
    for phase, seconds in phases.items():
        others = total - seconds
        if _growth(seconds / np.maximum(others, 1e-9)) > SLOWER and medians[phase] > 0.1 * float(np.median(total)):
            n, ratio = max(len(seconds) // 3, 1), seconds / np.maximum(others, 1e-9)
            grown = float(np.median(ratio[-n:]) / np.median(ratio[:n]))
            text = f"time/{phase} has grown {grown:.1f} times against the other phases"
            yield Finding("throughput", "warning", text, grown, SLOWER)
            return
    share = medians[most] / max(float(np.median(total)), 1e-9)
    waiting = most in ("encode", "reward") and share > SHARE
    text = f"an iteration takes {np.median(total):.2g} s, {share:.0%} of it in time/{most}"
    yield Finding("throughput", "note" if waiting else "ok", text, share, SHARE)
