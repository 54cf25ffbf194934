"""The rows of a comparison: what the finished runs of each method cost and reached."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import mean, median, stdev

import numpy as np

from neighbor_grpo.compare.settings import Bounds, Comparison, Entry, Rise
from neighbor_grpo.config import method_name
from neighbor_grpo.run import files
from neighbor_grpo.run.files import Figures, training_seconds

COSTS = ("iterations", "evaluations", "pictures", "seconds")  # what curves are drawn against


@dataclass(frozen=True)
class Nfe:
    """Hold model evaluations per sample of an iteration, averaged over the iterations."""

    old: float  # forwards of the rollout as run
    nominal: float  # the same as papers count them, nothing shared in a group
    theta: float  # forward-backwards
    frozen: float  # forwards of the reference and of lagging copies

    @classmethod
    def of(cls, lines: Sequence[Figures]) -> "Nfe":
        """Average lines of metrics.jsonl, one for each iteration."""
        return cls(*(mean(line.get(f"nfe_{name}", 0) for line in lines) for name in ("old", "nominal", "theta", "frozen")))

    @property
    def evaluations(self) -> float:
        """Return the cost in forwards: a forward-backward counts as three."""
        return self.old + 3 * self.theta + self.frozen


@dataclass(frozen=True)
class Reached:
    """Hold the cost of reaching a reward; None where it is not reached."""

    by_mean: float | None  # by the mean over seeds
    by_seeds: list[float | None]


@dataclass(frozen=True)
class Row:
    """Hold what one method's S finished seeds cost and reached; all are evaluated at the same points."""

    name: str
    method: str
    lr: float
    runs: Sequence[Path]
    diverged: int  # seeds whose loss or gradient was not finite
    nfe: Nfe
    seconds_per_iteration: float
    costs: Mapping[str, np.ndarray]  # by the names of COSTS: [S, points], 0 first
    measures: Mapping[str, np.ndarray]  # on the evaluation prompts, "reward" the weighted sum of those trained on: [S, points]
    bounds: Bounds = field(default_factory=dict)

    def final(self, name: str) -> tuple[float, float]:
        """Return a measure's mean and standard deviation over seeds after training."""
        values = self.measures[name][:, -1].tolist()
        return mean(values), stdev(values) if len(values) > 1 else 0.0

    @cached_property
    def kept(self) -> float:
        """Return how many points, from the first, keep the bounds by the mean over seeds; 2.5: half the way to the third too.

        Measures are linear between points, so that what a fast run reaches does not depend on how often it is evaluated.
        """
        points, inside, share = self.measures["reward"].shape[1], 0, 0.0
        means = {name: self.measures[name].mean(0) for name in self.limits}
        while inside < points and all(low <= means[name][inside] <= high for name, (low, high) in self.limits.items()):
            inside += 1  # NaN is outside
        if 0 < inside < points:
            share = min(_way(mean[inside - 1], mean[inside], self.limits[name]) for name, mean in means.items())
        return inside + share

    @property
    def limits(self) -> dict[str, tuple[float, float]]:
        """Return the interval in which the mean over seeds of each bounded measure must stay."""
        return {name: bound.interval(float(self.measures[name][:, 0].mean())) for name, bound in self.bounds.items()}

    @property
    def highest(self) -> float:
        """Return the highest mean reward within the bounds, in which the first point must lie."""
        return float(np.nanmax(self._within(self.measures["reward"]).mean(0)))

    def _within(self, curves: np.ndarray) -> np.ndarray:
        """Cut curves [S, points] where the bounds are left.  -> [S, points that are kept, and one on the way to the next]"""
        whole = int(self.kept)
        inside, share = curves[:, :whole], self.kept - whole
        return np.column_stack([inside, inside[:, -1] + share * (curves[:, whole] - inside[:, -1])]) if share else inside

    def level(self, reach: float | Rise) -> float:
        """Return the reward to reach as a number."""
        return reach.times * float(self.measures["reward"][:, 0].mean()) if isinstance(reach, Rise) else reach

    def cost_to_reach(self, reward: float, cost: str) -> Reached:
        """Return what it costs to reach a reward before the bounds are left."""
        x, y = self._within(self.costs[cost]), self._within(self.measures["reward"])
        if not self.kept:
            return Reached(None, [None] * len(x))
        seeds = [crossing(*curve, reward) for curve in zip(x, y, strict=True)]
        return Reached(crossing(x.mean(0), y.mean(0), reward), seeds)

    def measured_at(self, evaluations: float | None) -> dict[str, float | None]:
        """Interpolate each measure's mean over seeds at so many model evaluations; None without a number."""
        x = self.costs["evaluations"].mean(0)
        return {
            name: None if evaluations is None else float(np.interp(evaluations, x, y.mean(0)))
            for name, y in self.measures.items()
        }


def _way(inside: float, after: float, interval: tuple[float, float]) -> float:
    """Return the share of the way from a value inside of an interval to the one after it at which it leaves, else 1."""
    if np.isnan(after):
        return 0.0
    edge = min(max(after, interval[0]), interval[1])
    return 1.0 if edge == after else float((edge - inside) / (after - inside))


def crossing(x: np.ndarray, y: np.ndarray, level: float) -> float | None:
    """Return where a curve first reaches a level, linear between its points; None where it does not."""
    above = np.flatnonzero(y >= level)
    if not len(above):
        return None
    n = int(above[0])
    return float(x[0] if n == 0 else x[n - 1] + (level - y[n - 1]) / (y[n] - y[n - 1]) * (x[n] - x[n - 1]))


def read_row(entry: Entry, comparison: Comparison) -> Row | None:
    """Read the finished seeds of a method; None where no seed is finished."""
    runs = [Path(comparison.run_dir) / entry.name / f"seed-{seed}" for seed in comparison.seeds]
    finished = [run for run in runs if files.finished(run)]
    if not finished:
        return None
    return replace(row_of(entry.name, finished, comparison), diverged=sum(files.diverged(run) for run in runs))


def row_of(name: str, runs: Sequence[Path], comparison: Comparison) -> Row:
    """Read runs that differ by their seeds alone."""
    lines, config = [files.read_metrics(run) for run in runs], files.read_config(runs[0])
    iterations = [line for run in lines for line in run[1:]]
    series = [evaluated_with_costs(run, config.prompts.per_iteration * config.method.group_size) for run in lines]
    points = min(len(run) for run in series)  # they differ only with a budget of seconds
    names = [key for key in series[0][0] if key.startswith("eval/")]
    measures = {key.removeprefix("eval/"): _stack(series, key, points) for key in names}
    weighted = [weight * measures[name] for name, weight in config.reward.train.items()]
    return Row(
        name=name,
        method=method_name(config.method),
        lr=config.optimizer.lr,
        runs=runs,
        diverged=0,
        nfe=Nfe.of(iterations),
        seconds_per_iteration=median(training_seconds(line) for line in iterations),
        costs={cost: _stack(series, cost, points) for cost in COSTS},
        measures=measures | {"reward": np.sum(weighted, axis=0)},
        bounds=comparison.bounds,
    )


def evaluated_with_costs(lines: Sequence[Figures], samples: int) -> list[Figures]:
    """Return the evaluated lines of a run, each with the costs up to there; the last line is always evaluated."""
    spent = dict.fromkeys(COSTS, 0.0)
    evaluated: list[Figures] = []
    for line in lines:
        if line["iteration"]:
            spent["iterations"] += 1
            spent["pictures"] += samples * (1 + line.get("scouts/drafts", 0.0))
            spent["evaluations"] += samples * Nfe.of([line]).evaluations
            spent["seconds"] += training_seconds(line)
        if files.evaluated([line]):
            evaluated.append(spent | line)
    return evaluated


def _stack(series: Sequence[Sequence[Figures]], key: str, points: int) -> np.ndarray:
    """Stack a figure of all seeds into [S, points], the first and last points among them."""
    return np.array([[line.get(key, np.nan) for line in [*run[: points - 1], run[-1]]] for run in series])
