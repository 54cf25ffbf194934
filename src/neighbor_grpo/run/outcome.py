"""The checks of what a run has made of its pictures, and of where its time went."""

from collections.abc import Iterator

import numpy as np

from neighbor_grpo.run import files
from neighbor_grpo.run.findings import Finding, Verdict
from neighbor_grpo.run.history import History, growth

CERTAIN = 3.3  # standard errors: p = 0.001, two-sided
FALLEN = 2.5  # of a watched reward, p = 0.006 at most: its errors are counted as if the noises differed
VARIETY = 0.7  # share of the diversity before training
AWAY = {"scenes_distance": 3.0, "grid_artefacts": 2.0}  # metrics of which more is worse: factor that cannot be style alone
SLOWER = 2.0  # of a phase against the others
SHARE = 0.5  # of an iteration that one phase of waiting may take


def hacking(history: History) -> Iterator[Finding]:
    """Look for a watched measure that gets worse while the trained reward rises."""
    trained = [history.rise(name) for name in history.config.reward.train]
    risen = all(z is None or z > CERTAIN for z in trained)
    found = False
    for name in history.config.watched:
        since = next((n for n in range(1, len(history.evaluations)) if _worse_from(history, name, n)), None)
        if since is None:
            continue
        found, iteration = True, history.evaluations[since]["iteration"]
        first, last = history.evaluations[0][f"eval/{name}"], history.evaluations[-1][f"eval/{name}"]
        text = f"{name} went from {first:.4g} to {last:.4g}, and is worse since iteration {iteration}"
        kind: tuple[str, Verdict] = ("hacking", "error") if risen else ("drift", "warning")
        yield Finding(*kind, text + (", while the trained reward rose" if risen else ""), last, first)
    if not found:
        yield Finding("hacking", "ok", "no watched measure got worse", history.evaluations[-1].get("eval/gap"))


def _worse_from(history: History, name: str, n: int) -> bool:
    """Return whether a watched measure is worse than before training at evaluation n and ever after."""
    return all(_worse(history, name, later) for later in range(n, len(history.evaluations)))


def _worse(history: History, name: str, n: int) -> bool:
    key, first, now = f"eval/{name}", history.evaluations[0], history.evaluations[n]
    if key not in first or key not in now:
        return False
    if name in AWAY:
        return now[key] > AWAY[name] * max(first[key], 0)
    z = history.rise(name, n)
    return z is not None and z < -FALLEN


def drift(history: History) -> Iterator[Finding]:
    """Look for pictures of a prompt that become alike."""
    first, last = (history.evaluations[n].get("eval/diversity") for n in (0, -1))
    if first and last is not None:
        share = last / first
        text = f"the diversity is {share:.0%} of that before training"
        yield Finding("drift", "warning" if share < VARIETY else "ok", text, share, VARIETY)


def throughput(history: History) -> Iterator[Finding]:
    """Look for a phase that waits, or that has become slower than the others."""
    phases = {p: history.series(f"time/{p}") for p in files.TRAINING_PHASES}
    phases = {p: seconds for p, seconds in phases.items() if len(seconds) == len(history.steps)}
    total = sum(phases.values(), np.zeros(len(history.steps)))
    medians = {p: float(np.median(seconds)) for p, seconds in phases.items()}
    most = max(medians, key=medians.__getitem__, default="")
    if not most:
        return
    for phase, seconds in phases.items():
        others = total - seconds
        if growth(seconds / np.maximum(others, 1e-9)) > SLOWER and medians[phase] > 0.1 * float(np.median(total)):
            n, ratio = max(len(seconds) // 3, 1), seconds / np.maximum(others, 1e-9)
            grown = float(np.median(ratio[-n:]) / np.median(ratio[:n]))
            text = f"time/{phase} has grown {grown:.1f} times against the other phases"
            yield Finding("throughput", "warning", text, grown, SLOWER)
            return
    share = medians[most] / max(float(np.median(total)), 1e-9)
    waiting = most in ("encode", "reward") and share > SHARE
    text = f"an iteration takes {np.median(total):.2g} s, {share:.0%} of it in time/{most}"
    yield Finding("throughput", "note" if waiting else "ok", text, share, SHARE)
