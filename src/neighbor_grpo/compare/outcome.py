"""What the runs of a comparison came to: costs, final measures, curves, and the cost of reaching a reward."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev

import numpy as np

from neighbor_grpo.compare.settings import Comparison, Entry, within
from neighbor_grpo.run import files
from neighbor_grpo.training.figures import training_seconds

COSTS = ("iterations", "evaluations", "seconds")  # what a curve is drawn against


@dataclass(frozen=True)
class Row:
    """One method: S finished seeds, evaluated at the same points."""

    name: str
    method: str
    lr: float
    runs: list[Path]
    diverged: int  # seeds that stopped being finite
    nfe_old: float  # forwards per sample, as run
    nfe_nominal: float  # and as papers count them
    nfe_theta: float
    seconds_per_iteration: float
    costs: dict[str, np.ndarray]  # iterations, evaluations, seconds: [S, points], 0 first
    measures: dict[str, np.ndarray]  # held out, "reward" the weighted sum that is trained on: [S, points]

    def final(self, name: str) -> tuple[float, float]:
        """Mean and standard deviation over seeds."""
        return spread(self.measures[name][:, -1])

    def cost_to_reach(self, reward: float, cost: str) -> tuple[float | None, list[float | None]]:
        """Of the mean over seeds, and of every seed; None where the reward is not reached."""
        x, y = self.costs[cost], self.measures["reward"]
        return crossing(x.mean(0), y.mean(0), reward), [crossing(*curve, reward) for curve in zip(x, y, strict=True)]

    def measured_at(self, evaluations: float | None) -> dict[str, float | None]:
        """Every measure's mean over seeds when so many evaluations were spent, between points in proportion."""
        x = self.costs["evaluations"].mean(0)
        return {
            name: None if evaluations is None else float(np.interp(evaluations, x, y.mean(0)))
            for name, y in self.measures.items()
        }


def crossing(x: np.ndarray, y: np.ndarray, level: float) -> float | None:
    """Where a curve given at points first reaches a level, between points in proportion."""
    above = np.flatnonzero(y >= level)
    if not len(above):
        return None
    n = int(above[0])
    return float(x[0] if n == 0 else x[n - 1] + (level - y[n - 1]) / (y[n] - y[n - 1]) * (x[n] - x[n - 1]))


def spread(values) -> tuple[float, float]:
    values = [float(value) for value in values]
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def outcome(entry: Entry, comparison: Comparison) -> Row | None:
    """What the finished seeds of a method came to; None if there are none."""
    runs = [Path(comparison.run_dir) / entry.name / f"seed-{seed}" for seed in comparison.seeds]
    finished = [run for run in runs if files.finished(run)]
    if not finished:
        return None
    lines = [files.metrics(run) for run in finished]
    steps = [line for run in lines for line in run[1:]]
    samples = entry.config.prompts.per_iteration * entry.config.method.group_size
    series = [_series(run, samples) for run in lines]
    points = min(len(run) for run in series)  # equal but for a budget of seconds
    names = [key for key in series[0][0] if key.startswith("eval/")]
    measures = {key[5:]: _stack(series, key, points) for key in names}
    measures["reward"] = sum(weight * measures[name] for name, weight in entry.config.reward.train.items())
    return Row(
        entry.name,
        entry.config.method.name,
        files.config_of(finished[0]).optimizer.lr,
        finished,
        sum(files.diverged(run) for run in runs),
        *(mean(line[key] for line in steps) for key in ("nfe_old", "nfe_nominal", "nfe_theta")),
        median(training_seconds(line) for line in steps),
        {cost: _stack(series, cost, points) for cost in COSTS},
        measures,
    )


def _series(lines: list[dict], samples: int) -> list[dict]:
    """The evaluated lines of a run, with what had been spent by then; the last is always one."""
    spent, kept = dict.fromkeys(COSTS, 0.0), []
    for line in lines:
        if line["iteration"]:
            spent["iterations"] += 1
            spent["evaluations"] += samples * (line["nfe_old"] + 3 * line["nfe_theta"])
            spent["seconds"] += training_seconds(line)
        if any(key.startswith("eval/") for key in line):
            kept.append(spent | line)
    return kept


def _stack(series: list[list[dict]], key: str, points: int) -> np.ndarray:
    """[S, points], first and last points among them."""
    return np.array([[line.get(key, np.nan) for line in [*run[: points - 1], run[-1]]] for run in series])


# ---------------------------------------------------------------- tables


def target(rows: list[Row], comparison: Comparison) -> tuple[float, str]:
    """The reward whose cost is told, and what it is: by default where the best baseline ends that keeps to tune.within."""
    if isinstance(comparison.reach, float | int):
        return float(comparison.reach), f"{comparison.reach:g}"
    bounds = comparison.tune.within if comparison.tune else {}
    others = [row for row in rows if row.method != "neighbor"] or rows
    kept = [row for row in others if within({name: row.final(name)[0] for name in bounds}, bounds)] or others
    chosen = next((row for row in rows if row.name == comparison.reach), max(kept, key=lambda row: row.final("reward")[0]))
    return chosen.final("reward")[0], f"{chosen.final('reward')[0]:.4g}, where {chosen.name} ends"


def records(rows: list[Row], comparison: Comparison) -> list[dict]:
    """The table as numbers: a record for each method."""
    reward, _ = target(rows, comparison)
    table = []
    for row in rows:
        record = {
            "run": row.name,
            "method": row.method,
            "lr": row.lr,
            "seeds": len(row.runs),
            "diverged": row.diverged,
            "nfe_old": row.nfe_old,
            "nfe_nominal": row.nfe_nominal,
            "nfe_theta": row.nfe_theta,
            "seconds_per_iteration": row.seconds_per_iteration,
        }
        record |= {cost: float(row.costs[cost][:, -1].mean()) for cost in COSTS}
        for name in row.measures:
            record[name], record[f"{name}_std"] = row.final(name)
        for cost in COSTS:
            record[f"{cost}_to_reach"] = row.cost_to_reach(reward, cost)[0]
        record |= {f"{name}_then": value for name, value in row.measured_at(record["evaluations_to_reach"]).items()}
        table.append(record)
    return table


def as_csv(table: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def as_markdown(rows: list[Row], comparison: Comparison) -> str:
    """The table of costs and final measures, and that of the cost to reach the target reward."""
    names = list(rows[0].measures)
    if len([name for name in names if np.array_equal(rows[0].measures[name], rows[0].measures["reward"])]) > 1:
        names.remove("reward")  # one reward of weight 1 is there under its own name
    head = ["run", "lr", "seeds", "NFE_old", "(as papers count)", "NFE_θ", "s/iter", "iterations", "evaluations", *names]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    before = [f"{rows[0].measures[name][:, 0].mean():.4g}" for name in names]
    lines.append("| *before training* " + "| " * (len(head) - len(names) - 1) + "| " + " | ".join(before) + " |")
    for row in rows:
        cells = [
            row.name,
            f"{row.lr:g}",
            f"{len(row.runs)}" + (f" ({row.diverged} diverged)" if row.diverged else ""),
            f"{row.nfe_old:.3g}",
            f"{row.nfe_nominal:.3g}",
            f"{row.nfe_theta:.3g}",
            f"{row.seconds_per_iteration:.2f}",
            f"{row.costs['iterations'][:, -1].mean():.0f}",
            f"{row.costs['evaluations'][:, -1].mean():,.0f}",
            *("{:.4g} ± {:.2g}".format(*row.final(name)) for name in names),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    reward, what = target(rows, comparison)
    lines += ["", f"Cost to reach a reward of {what}, of the mean over seeds (the first and last seed), and the measures then:"]
    lines += [""]
    lines += ["| run | " + " | ".join([*COSTS, *names]) + " |", "|---" * (1 + len(COSTS) + len(names)) + "|"]
    for row in rows:
        reached = {cost: row.cost_to_reach(reward, cost) for cost in COSTS}
        then = row.measured_at(reached["evaluations"][0])
        cells = [_reached(*reached[cost]) for cost in COSTS] + [f"{then[name]:.4g}" if then[name] else "" for name in names]
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _reached(of_mean: float | None, of_seeds: list[float | None]) -> str:
    there = sorted(value for value in of_seeds if value is not None)
    text = "not reached" if of_mean is None else f"{of_mean:,.0f}"
    if not there:
        return text
    lost = len(of_seeds) - len(there)
    return f"{text} ({there[0]:,.0f} – {f'not by {lost}' if lost else f'{there[-1]:,.0f}'})"
