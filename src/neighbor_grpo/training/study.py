"""What the gradients of methods are worth before anything is trained: signal against noise, direction, effect.

For each method, groups are rolled out by the model as it is, and the gradient g of each group's loss is computed, also of its
rows at each time t alone.  Over n groups

    signal = |E g|^2, unbiased: the mean of <g_i, g_j> over i != j        noise = E|g - E g|^2
    enough = noise / signal, the prompts of an iteration whose signal equals its noise
    cosine = <E g, E h> / (|E g|·|E h|), unbiased, with h the gradient of a reference method on groups of its own
    effect = the measures on the evaluation prompts after one step of equal length along -E g

The cost of a direction is enough times the model evaluations of a group.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from neighbor_grpo.config import Config
from neighbor_grpo.methods.flow_grpo import FlowGRPO
from neighbor_grpo.methods.rows import Rows
from neighbor_grpo.models.conditioning import Cond
from neighbor_grpo.planning.plan import plan
from neighbor_grpo.run.pages import markdown_table
from neighbor_grpo.training.doctor.gradients import BLIND
from neighbor_grpo.training.doctor.patient import Patient, admitted, chosen, rows_of, thinned
from neighbor_grpo.training.doctor.statistics import Direction, direction

KEPT = 2**18  # numbers of a gradient that are compared
MOVED = 0.03  # root mean square by which the step moves the first method's pictures
CERTAIN = 0.05  # p-value of a direction that is believed


@dataclass(frozen=True)
class Part:
    """Describe the gradients of the rows of one time, or of all rows (t is None)."""

    t: float | None
    groups: int  # that have such rows
    flat: float  # share of them whose gradient is zero: no spread in the rewards
    found: Direction
    cosine: float | None  # with the reference; None where either has no signal


@dataclass(frozen=True)
class Studied:
    """Hold what was found about one method."""

    name: str
    evaluations: float  # of the model, for a group: a forward counts 1, a forward-backward 3
    whole: Part
    by_time: Sequence[Part]
    effect: Mapping[str, float]  # measures on the evaluation prompts after the step

    @property
    def cost(self) -> float:
        """Return the evaluations of an iteration whose signal equals its noise; infinite without a signal."""
        return self.whole.found.enough * self.evaluations


@dataclass(frozen=True)
class Study:
    """Hold the measures before any step, the length of the step in the space of the weights, and the findings."""

    before: Mapping[str, float]
    length: float
    methods: Sequence[Studied]


class Gathered:
    """Gather the gradients of groups: thinned out, by time and as a whole (None), and their full mean."""

    def __init__(self, patient: Patient, groups: int) -> None:
        self.vectors: dict[float | None, list[Tensor]] = defaultdict(list)
        self.mean = [torch.zeros_like(weight) for weight in patient.weights.values()]
        n = 0
        while len(self.vectors[None]) < groups:
            one = patient.experience(n)
            for rows in filter(None, (rows_of(one, prompt) for prompt in range(len(one.cond)))):
                if len(self.vectors[None]) < groups:
                    self._add(patient, rows, one.cond)
            patient.forget(n)
            n += 1
        for part in self.mean:
            part /= groups

    def _add(self, patient: Patient, rows: Rows, cond: Cond) -> None:
        """Add a group.  Its loss is the mean over its rows, so each time counts by its share of them."""
        whole = [torch.zeros_like(part) for part in self.mean]
        states = rows.t.reshape(len(rows), -1)
        alone = bool((states == states[:, :1]).all())  # otherwise a row has several times, which cannot be told apart
        for t in states.unique() if alone else states[:1, 0]:
            some = chosen(rows, states[:, 0] == t) if alone else rows
            gradient = patient.gradient(some, cond)
            if alone:
                self.vectors[float(t)].append(thinned(gradient, KEPT))
            for part, g in zip(whole, gradient, strict=True):
                part += g * (len(some) / len(rows))
        self.vectors[None].append(thinned(whole, KEPT))
        for part, g in zip(self.mean, whole, strict=True):
            part += g

    def part(self, t: float | None, reference: "Gathered") -> Part:
        """Describe the gradients of a time, or all of them."""
        vectors = torch.stack(self.vectors[t])
        flat = float((vectors.abs().amax(1) == 0).double().mean())
        expected = Expected.of(vectors)
        return Part(t, len(vectors), flat, expected.found, expected.cosine(reference.whole))

    @cached_property
    def whole(self) -> "Expected":
        """Return what is known of the expectation of the gradients of whole groups."""
        return Expected.of(torch.stack(self.vectors[None]))


@dataclass(frozen=True)
class Expected:
    """Hold what is known of the expectation of vectors: their mean, and how long it is beside their noise."""

    mean: Tensor
    found: Direction

    @classmethod
    def of(cls, vectors: Tensor) -> "Expected":
        """Look for the direction that vectors [n, D] share."""
        vectors = vectors.double()
        found = direction((vectors @ vectors.T).numpy()) if len(vectors) > 1 else Direction(0.0, 0.0, 1.0)
        return cls(vectors.mean(0), found)

    def cosine(self, other: "Expected") -> float | None:
        """Return the cosine with an expectation of independent vectors; None where either has no signal."""
        if len(self.mean) != len(other.mean) or self.found.signal <= 0 or other.found.signal <= 0:  # or of other weights
            return None
        return float(self.mean @ other.mean) / math.sqrt(self.found.signal * other.found.signal)


def study(runs: Mapping[str, Config], groups: int, say: Callable[[str], None] = print) -> Study:
    """Study the methods of runs, over so many groups each; the runs differ by their methods."""
    first = next(iter(runs.values()))
    sde = FlowGRPO(group_size=first.method.group_size, num_steps=max(first.method.num_steps, 2))
    say("gathers the policy gradient of the SDE (flow_grpo), with which the others are compared")
    with admitted(first.model_copy(update={"method": sde, "seed": first.seed + 1})) as patient:
        reference, before = Gathered(patient, groups), _measured(patient)
    length, methods = 0.0, []
    for name, config in runs.items():
        say(f"studies {name}")
        with admitted(config) as patient:
            gathered = Gathered(patient, groups)
            length = length or _length(patient, gathered.mean)
            with patient.restored():
                _step(patient, gathered.mean, length)
                effect = _measured(patient)
        times = sorted((t for t in gathered.vectors if t is not None), reverse=True)
        evaluations = plan(config).evaluations / config.prompts.per_iteration
        whole, by_time = gathered.part(None, reference), [gathered.part(t, reference) for t in times]
        methods.append(Studied(name, evaluations, whole, by_time, effect))
    return Study(before, length, methods)


def _measured(patient: Patient) -> dict[str, float]:
    """Return the measures on the evaluation prompts."""
    figures = patient.parts.evaluator.evaluate().figures
    return {key.removeprefix("eval/"): value for key, value in figures.items() if key.startswith("eval/")}


@torch.no_grad()
def _step(patient: Patient, gradient: Sequence[Tensor], length: float) -> None:
    """Move the weights by `length` against a gradient; not at all where it is zero."""
    size = float(torch.sqrt(sum((part.float().square().sum() for part in gradient), torch.zeros(()))))
    for weight, part in zip(patient.weights.values(), gradient, strict=True):
        weight.sub_(part * (length / size if size else 0.0))


def _length(patient: Patient, gradient: Sequence[Tensor]) -> float:
    """Return the length of a step that moves pictures by MOVED; 0 where the gradient is zero."""
    prompts = range(min(2, len(patient.parts.prompts)))
    start, length = patient.pictures(prompts, 2), 1e-3
    for _ in range(30):
        with patient.restored():
            _step(patient, gradient, length)
            moved = float((patient.pictures(prompts, 2) - start).square().mean().sqrt())
        if moved > MOVED / 2:
            return length * MOVED / moved
        length *= 2
    return 0.0


# ---------------------------------------------------------------- words


def tables(result: Study) -> str:
    """Write the findings as two tables: the methods, and their times."""
    names = list(result.before)
    head = ["run", "evaluations a group", "p", "prompts for signal = noise", "evaluations for it", "flat", "cosine", *names]
    methods = [head, ["before the step", *[""] * 6, *(f"{value:.4g}" for value in result.before.values())]]
    times = [["run", "t", "groups", "p", "prompts for signal = noise", "flat", "cosine"]]
    for one in result.methods:
        found, effect = one.whole.found, [f"{one.effect[name]:.4g}" for name in names]
        cells = [one.name, f"{one.evaluations:.3g}", f"{found.p_value:.2g}", _number(found.enough), _number(one.cost)]
        methods.append([*cells, f"{one.whole.flat:.0%}", _signed(one.whole.cosine), *effect])
        times += [
            [one.name, f"{part.t:.3f}", str(part.groups), f"{part.found.p_value:.2g}", _number(part.found.enough),
             f"{part.flat:.0%}", _signed(part.cosine)]
            for part in one.by_time
        ]  # fmt: skip
    return f"{markdown_table(methods)}\n{markdown_table(times)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "no signal"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


def advice(result: Study, limits: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return which method to train, on which times, with how many prompts; and what teaches nothing or does damage.

    limits: the interval of each bounded measure, which a step should not leave.
    """
    lines = []
    for one in result.methods:
        if blind := [f"{part.t:.3f}" for part in one.by_time if part.flat > BLIND]:
            lines.append(
                f"{one.name}: more than half of the groups have no spread at t = {', '.join(blind)}: they teach nothing"
            )
        for name in _left(one, limits):
            lines.append(f"{one.name}: the step moves {name} out of its bounds, to {one.effect[name]:.4g}")
    clear = [one for one in result.methods if one.whole.found.p_value <= CERTAIN]
    if not clear:
        return [
            *lines,
            "no gradients share a direction: study more groups, or choose a finer reward or a smaller neighbourhood",
        ]
    best = min([one for one in clear if not _left(one, limits)] or clear, key=lambda one: one.cost)
    enough = math.ceil(best.whole.found.enough)
    lines.append(
        f"{best.name} has the cheapest direction: {best.cost:,.0f} evaluations; give an iteration {enough} prompts or more"
    )
    if times := [f"{part.t:.3f}" for part in best.by_time if part.found.p_value <= CERTAIN]:
        lines.append(f"{best.name}: the rows at t = {', '.join(times)} have a direction of their own")
    return lines


def _left(one: Studied, limits: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the bounded measures that the step moves out of their bounds."""
    return [name for name, (low, high) in limits.items() if not low <= one.effect[name] <= high]
