"""The checks of the update: signal in the gradients, their reach, the ratio, the rate, and one prompt."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from statistics import fmean

import torch
from torch import Tensor

from neighbor_grpo.config import Config
from neighbor_grpo.methods.neighbor import Neighbor
from neighbor_grpo.models.attach import TRAINED
from neighbor_grpo.models.sampling import fixed_noise, sample
from neighbor_grpo.rewards.set import RewardSet
from neighbor_grpo.run.findings import MOST_CLIPPED, ROUNDING, TRIAL, Finding, Verdict, floor_finding
from neighbor_grpo.training.collector import Collector
from neighbor_grpo.training.doctor.patient import Patient, rows_of, thinned
from neighbor_grpo.training.doctor.statistics import Direction, direction
from neighbor_grpo.training.experience import Experience
from neighbor_grpo.training.phases import Phases

STAGES = {16: 0.002, 32: 0.004, 64: 0.004}  # groups -> p-value; together 1 % for gradients without a signal
LEAST = 8  # groups with a gradient, without which nothing is decided
CHANCE = 0.16  # p-value of a signal of one standard error: a smaller one is not even suspected
KEPT = 2**20  # numbers of a gradient that are compared
DEAD = 0.05  # share of the trained numbers without a gradient; the last block of some models has a branch without effect
FAR = 0.5  # of the distance between two pictures of a prompt
ITERATIONS, SEEDS, SEEN = 6, 24, 0.01  # of the one prompt; an iteration shall move its pictures by SEEN
MOST = 30.0  # factor of the rate for it
SEEN_AT, BLIND = 4, 0.5  # groups at a time that are enough to judge it, and the share without spread that is too large
CERTAIN = 3.3  # standard errors: p = 0.001, two-sided


def gradient_findings(patient: Patient, seconds: float, sound: bool) -> Iterator[Finding]:
    """Check what an iteration teaches; `seconds` bounds the search for a signal, which only a sound reward can have."""
    with patient.restored():
        yield from _steps(patient)
    if not sound:
        return
    groups = _groups(patient, patient.config, patient.experience, seconds, max(STAGES))
    if signal := _signal(groups, patient.config):
        yield signal if signal.verdict != "warning" else _smaller_sigma(patient, seconds) or signal
    if flat := _flat_times(groups):
        yield flat
    if patient.seen:
        yield _one_prompt(patient)


# ---------------------------------------------------------------- the signal


@dataclass(frozen=True)
class _Group:
    """Hold the gradient of one group, thinned out to KEPT numbers, and the time of its rows; None for several times."""

    gradient: Tensor
    t: float | None


def _all_groups(patient: Patient, experience: Callable[[int], Experience]) -> Iterator[_Group]:
    """Give one group after another."""
    for n in count():
        one = experience(n)
        for rows in filter(None, (rows_of(one, prompt) for prompt in range(len(one.cond)))):
            times = rows.t.unique().tolist()
            yield _Group(thinned(patient.gradient(rows, one.cond), KEPT), times[0] if len(times) == 1 else None)
        patient.forget(n)


def _groups(
    patient: Patient, config: Config, experience: Callable[[int], Experience], seconds: float, most: int
) -> list[_Group]:
    """Collect groups until their gradients share a direction, `most` are there, or the time is up."""
    began, groups = time.perf_counter(), list[_Group]()
    for group in _all_groups(patient, experience):
        groups.append(group)
        if time.perf_counter() - began > seconds or len(groups) == most:
            return groups
        if len(groups) in STAGES and (not _moved(groups) or _shared(groups).p_value <= STAGES[len(groups)]):
            return groups
    return groups


def _moved(groups: Sequence[_Group]) -> int:
    """Count the groups whose gradient is not zero."""
    return sum(bool(group.gradient.any()) for group in groups)


def _shared(groups: Sequence[_Group]) -> Direction:
    """Look for the direction that the gradients share."""
    some = torch.stack([group.gradient for group in groups]).double()
    return direction((some @ some.T).numpy()) if len(groups) > 1 else Direction(0.0, 0.0, 1.0)


def _signal(groups: Sequence[_Group], config: Config) -> Finding | None:
    """Judge the direction that the gradients share.  None for gradients of zero."""
    if not (moved := _moved(groups)):
        return None
    return _signal_finding(_shared(groups), len(groups), moved, STAGES.get(len(groups), STAGES[64]), config)


def _flat_times(groups: Sequence[_Group]) -> Finding | None:
    """Name the times at which most groups have no gradient: the rewards in each are the same, and nothing is learned there.

    None where every time is looked at fewer than SEEN_AT times, or no time is blind.
    """
    flat: dict[float, list[bool]] = {}
    for group in groups:
        if group.t is not None:
            flat.setdefault(group.t, []).append(not group.gradient.any())
    known = {t: fmean(some) for t, some in sorted(flat.items(), reverse=True) if len(some) >= SEEN_AT}
    if not (blind := [f"{t:.3f}" for t, share in known.items() if share > BLIND]):
        return None
    text = f"more than half of the groups whose rows are at t = {', '.join(blind)} have no spread in their rewards"
    verdict: Verdict = "error" if len(blind) == len(known) else "warning"
    return Finding("flat_times", verdict, text, max(known.values()), BLIND)


def _signal_finding(result: Direction, groups: int, moved: int, limit: float, config: Config) -> Finding:
    """Word the result; the number is that of prompts at which signal and noise of an iteration are equal."""
    if result.p_value <= limit:
        text = (
            f"the gradients of {groups} groups share a direction (p = {result.p_value:.2g}): about {result.enough:.0f} prompts "
            f"give a signal as large as the noise, and an iteration has {config.prompts.per_iteration}"
        )
        return Finding("gradient_signal", "ok", text, result.p_value, limit)
    if moved < LEAST or groups < max(STAGES):
        text = f"{moved} groups with a gradient are too few to find a direction in (p = {result.p_value:.2g})"
        return Finding("gradient_signal", "note", text, result.p_value, limit)
    if result.p_value <= CHANCE or not isinstance(config.method, Neighbor):  # gradients of SDE steps are noisier: undecided
        text = f"the gradients of {groups} groups show no clear direction (p = {result.p_value:.2g})"
        return Finding("gradient_signal", "note", text, result.p_value, limit)
    text = f"the gradients of {groups} groups share no direction (p = {result.p_value:.2g}): training would follow noise"
    return Finding("gradient_signal", "warning", text, result.p_value, CHANCE)


def _smaller_sigma(patient: Patient, seconds: float) -> Finding | None:
    """Look for a signal in a smaller neighbourhood, where there is none in the present one."""
    method, parts = patient.config.method, patient.parts
    if not isinstance(method, Neighbor) or method.sigma <= 0.1:
        return None
    for sigma in (method.sigma / 4, method.sigma / 16):
        config = patient.config.model_copy(update={"method": replace(method, sigma=sigma)})
        source = Collector(
            parts.model, parts.texts, parts.prompts, RewardSet(parts.rewards.scorers), parts.slots, config, parts.accelerator,
            Phases(parts.model.device),
        )  # fmt: skip
        found = _signal(_groups(patient, config, source.experience, seconds, 32), config)
        if found and found.verdict == "ok":
            text = f"at method.sigma = {method.sigma:g} the gradients of groups share no direction, at {sigma:g} they do"
            return Finding("sigma_large", "error", text, method.sigma, sigma)
    return None


# ---------------------------------------------------------------- one iteration's steps


def _steps(patient: Patient) -> Iterator[Finding]:
    """Take the optimizer steps of one iteration, and look at the ratio, the gradient and the pictures."""
    prompts = range(min(2, len(patient.parts.prompts)))
    before = patient.pictures(prompts, 2)
    figures = patient.step(patient.experience(0))
    floor = floor_finding(figures.get("ratio/noise_floor", 0.0), patient.config)
    if floor:
        yield floor
    clipped = figures.get("ratio/clipped", 0.0)
    text = f"the clip cuts off {clipped:.0%} of the decisions of an iteration"
    yield Finding("clipped", "warning" if clipped > MOST_CLIPPED else "ok", text, clipped, MOST_CLIPPED)
    if figures["grad_norm"] > 0:
        yield _reach(patient)
        yield _rate(patient, before, patient.pictures(prompts, 2))


def _reach(patient: Patient) -> Finding:
    """Name the weights that the gradient does not reach after the first steps: before them a LoRA's A has none, as B is 0."""
    learner, adapters = patient.parts.learner, bool(patient.config.model.lora)
    names = [name for name, _ in learner.transformer.named_parameters() if f".{TRAINED}." in name or not adapters]
    dead = {name for name in names if name not in patient.weights}
    still = set(patient.weights)
    for n in range(2):
        one = patient.source.experience(1) if n else patient.experience(0)  # the second one is of the stepped weights
        rows = [rows for rows in one.updates if len(rows)]
        gradient = patient.gradient(type(rows[0]).cat(rows), one.cond)
        still -= {name for name, g in zip(patient.weights, gradient, strict=True) if bool(g.any())}
        if not still:
            break
    dead |= still
    sizes = {name: p.numel() for name, p in learner.transformer.named_parameters() if name in names}
    share = sum(sizes[name] for name in dead) / sum(sizes.values())
    if not dead:
        return Finding("frozen", "ok", f"the gradient reaches all {len(names)} trained tensors", 0.0, DEAD)
    text = f"the gradient does not reach {len(dead)} of {len(names)} trained tensors ({share:.1%} of the numbers): "
    first = ", ".join(sorted(dead)[:3]) + (", ..." if len(dead) > 3 else "")
    verdict: Verdict = "error" if share == 1 else "warning" if share > DEAD else "note"
    return Finding("frozen", verdict, text + first, share, DEAD)


def _rate(patient: Patient, before: Tensor, after: Tensor) -> Finding:
    """Compare how far one iteration moves the pictures with 8 bits and with the distance between two pictures."""
    moved = float((after - before).square().mean().sqrt())
    between = float((before[:, 0] - before[:, 1]).square().mean().sqrt())
    patient.moved = moved
    iterations, lr = max(patient.config.iterations, TRIAL), patient.config.optimizer.lr
    if moved * iterations < ROUNDING:
        text = (
            f"optimizer.lr = {lr:g} moves the pictures by {moved:.1g} in an iteration: {iterations} of them, all in one "
            "direction, would stay below the rounding to 8 bits"
        )
        return Finding("rate_low", "error", text, moved * iterations, ROUNDING)
    if moved > FAR * between:
        text = f"optimizer.lr = {lr:g} moves the pictures in one iteration by {moved / between:.0%} of the distance between two"
        return Finding("rate_high", "error", text, moved, FAR * between)
    text = f"optimizer.lr = {lr:g} moves the pictures by {moved:.2g} in an iteration (root mean square, range 0 to 1)"
    return Finding("rate_high", "ok", text, moved, FAR * between)


# ---------------------------------------------------------------- one prompt


def _one_prompt(patient: Patient) -> Finding:
    """Train on the prompt whose scores differ most, and score fixed noises before and after."""
    parts, config = patient.parts, patient.config
    name = next(iter(config.reward.train))
    seen = [(float(v.std()), p) for some in patient.seen for v, p in zip(some.table(name), some.prompts, strict=True)]
    prompt = max(seen, key=lambda pair: pair[0] if pair[0] == pair[0] else -1.0)[1]
    rewards, cond = RewardSet(parts.rewards.scorers), parts.texts.encode([prompt])
    noise, batch, method = fixed_noise(parts.model, [0], SEEDS), config.batch, config.method
    source = Collector(
        parts.model, parts.texts, [prompt], rewards, range(1), config.model_copy(update={"run_dir": None}), parts.accelerator,
        Phases(parts.model.device), parts.learner.drawing,
    )  # fmt: skip

    def scored() -> Tensor:
        images = sample(parts.model, cond, noise, method.num_steps, config.evaluate.solver, batch.rollout, batch.decode)
        values = torch.stack([one.values for one in rewards.score(images, [prompt]).values()])
        return torch.tensor(list(config.reward.train.values())).double() @ values

    factor = min(MOST, max(1.0, SEEN / max(patient.moved, 1e-9)))
    with patient.restored(), patient.rate_times(factor):
        before = scored()
        for n in range(ITERATIONS):
            patient.step(source.experience(n))
        rise = scored() - before
    rise = rise[rise.isfinite()]
    error = float(rise.std()) / max(len(rise), 1) ** 0.5
    t = float(rise.mean()) / error if error else 0.0
    # a fall is a note too: the pictures of one prompt move together, and a few iterations may lead them anywhere
    verdict: Verdict = "ok" if t > CERTAIN else "note"
    how = f"{ITERATIONS} iterations on {prompt.text!r} at {factor:.3g} times the rate"
    text = f"{how} change its reward by {t:+.1f} standard errors"
    return Finding("one_prompt", verdict, text, t, CERTAIN)
