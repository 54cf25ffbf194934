"""The paper's tables and figures on the bundled model, from runs of `neighbor-grpo compare paper/table_1` ... `table_6`.

    python benchmarks/paper.py page      docs/paper.md: the paper's figures beside ours, and which claims hold
    python benchmarks/paper.py fig_4     curves and pictures with and without the quasi-norm      (of table_6)
    python benchmarks/paper.py fig_5     the trained reward of all methods against iterations     (of table_2)
    python benchmarks/paper.py fig_6     pictures of all methods from the same noise              (of table_1)
    python benchmarks/paper.py fig_8     groups before and after training, rewards and advantages (of table_4)

Runs are read from --runs, runs/paper.  `page` keeps their results.json as benchmarks/results/paper/table_N.json, and writes the
page from these files, so it needs no runs where they are there already.  Figures go to docs/paper.
"""

import argparse
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import yaml
from scipy.stats import t

ROOT = Path(__file__).parents[1]
PAGE, RESULTS, FIGURES = ROOT / "docs/paper.md", ROOT / "benchmarks/results/paper", ROOT / "docs/paper"
PRINTED: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "benchmarks/paper.yaml").read_text(encoding="utf-8"))
NAMES = {
    "nfe_nominal": "NFE_old as papers count",
    "nfe_old": "NFE_old",
    "nfe_theta": "NFE_θ",
    "seconds_per_iteration": "s/iter",
}
BEFORE = "before training"


# ---------------------------------------------------------------- the page


class Results:
    """Read the results.json of a comparison."""

    def __init__(self, file: Path) -> None:
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"table": [], "curves": {}}
        self.records: dict[str, Mapping[str, Any]] = {record["run"]: record for record in found["table"]}
        self.curves: dict[str, Mapping[str, Any]] = found["curves"]

    def cell(self, run: str, name: str) -> str:
        """Write a figure of a run after training: of a measure mean ± std over seeds; nothing where there is none."""
        if run == BEFORE:
            curves = next(iter(self.curves.values()), {})
            return f"{np.mean(curves[name], 0)[0]:.3g}" if name in curves and not is_cost(name) else ""
        record = self.records.get(run, {})
        if name not in record:
            return ""
        spread = f" ± {record[f'{name}_std']:.1g}" if len(self.curves[run].get(name, ())) > 1 and not is_cost(name) else ""
        return f"{record[name]:,.0f}" if name == "evaluations" else f"{record[name]:.3g}{spread}"

    def verdict(self, claim: Mapping[str, str]) -> tuple[str, str]:
        """Return our figures for a claim, and whether it holds."""
        name, more, less = claim["measure"], claim["more"], claim["less"]
        if more not in self.records or less not in self.records:
            return "", "not run"
        if name not in self.curves[more]:
            return cost_verdict(self.records[more][name], self.records[less][name])
        ends = [np.array(self.curves[run][name])[:, -1] for run in (more, less)]
        middle, low, high = interval(ends[0] - ends[1])
        around = f" ({low:+.2g} to {high:+.2g})" if math.isfinite(low) else ", one seed"
        text = f"{ends[0].mean():.3g} against {ends[1].mean():.3g}: {middle:+.2g}{around}"
        return text, "**holds**" if low > 0 else "**does not hold**" if high < 0 else "undecided"


def is_cost(name: str) -> bool:
    """Return whether a curve of results.json is a cost."""
    return name in ("iterations", "evaluations", "pictures", "seconds")


def interval(differences: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of differences over seeds, and its 95 % interval by Student's t; without bounds for one seed."""
    n, middle = len(differences), float(differences.mean())
    if n < 2:
        return middle, -math.inf, math.inf
    around = float(t.ppf(0.975, n - 1) * differences.std(ddof=1) / n**0.5)
    return middle, middle - around, middle + around


def cost_verdict(more: float | None, less: float | None) -> tuple[str, str]:
    """Return two costs, None = not reached, and whether the first is larger."""
    words = ["not reached" if cost is None else f"{cost:.3g}" for cost in (more, less)]
    ratio = f": {more / less:.2g} times" if more and less else ""
    if more is None and less is None:
        return " against ".join(words), "undecided"
    holds = less is not None and (more is None or more > less)
    return " against ".join(words) + ratio, "**holds**" if holds else "**does not hold**"


def table(name: str, results: Results) -> str:
    """Write a table: the paper's columns, ours beside them, then the claims."""
    from neighbor_grpo.run.pages import markdown_table

    printed = PRINTED[name]
    rows = {BEFORE: " ".join("–" for _ in printed["columns"])} | printed["rows"]
    head = [
        "run",
        *(f"*{column}*" for column in printed["columns"]),
        *(f"`{NAMES.get(ours, ours)}`" for ours in printed["ours"]),
    ]
    body = [[run, *figures.split(), *(results.cell(run, ours) for ours in printed["ours"])] for run, figures in rows.items()]
    claims = [["claim", "paper", "here", ""]]
    claims += [[claim["text"], claim["paper"], *results.verdict(claim)] for claim in printed["claims"]]
    return f"{markdown_table([head, *body])}\n{markdown_table(claims)}"


def write_page(runs: Path) -> None:
    """Keep the results of the runs, and write the page's tables."""
    from neighbor_grpo.files import atomic

    text = PAGE.read_text(encoding="utf-8")
    for name in PRINTED:
        kept, new = RESULTS / f"{name}.json", runs / name / "results.json"
        if new.is_file():
            RESULTS.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(new, kept)
        head, begin, rest = text.partition(f"<!-- {name} -->")
        _, end, tail = rest.partition(f"<!-- /{name} -->")
        assert begin and end, f"{PAGE} has no place for {name}"
        text = f"{head}{begin}\n\n{table(name, Results(kept))}\n{end}{tail}"
    atomic.write(PAGE, text)
    print(PAGE)


# ---------------------------------------------------------------- curves and pictures


def curves(rows: Sequence[Any], names: Sequence[str], file: Path) -> None:
    """Draw measures against iterations, each in a panel, with bands of ± one std over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(names), 3.8), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for axis, name in zip(axes, names, strict=True):
        for row in rows:
            x, y = row.costs["iterations"].mean(0), row.measures[name]
            line = axis.plot(x, y.mean(0), marker=".", lw=1.2, label=row.name)[0]
            if len(y) > 1:
                around = y.std(0, ddof=1)
                axis.fill_between(x, y.mean(0) - around, y.mean(0) + around, alpha=0.12, lw=0, color=line.get_color())
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("iterations", fontsize=8)
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(rows), fontsize=8)
    figure.savefig(file, dpi=110)
    print(file)


def fig_4(runs: Path) -> None:
    """Draw curves and pictures with (p = 0.8) and without (p = 2) the quasi-norm."""
    rows = pictures.rows_of(runs / "table_6", ("p_2", "p_0.8"))
    curves(rows, ("reward", "scenes_strict", "scenes_distance", "diversity"), FIGURES / "fig_4.png")
    pictures.draw(rows, FIGURES / "fig_4_pictures.png")


def fig_5(runs: Path) -> None:
    """Draw the trained reward and the watched measures of all methods against iterations."""
    curves(pictures.rows_of(runs / "table_2"), ("reward", "scenes_strict", "scenes_distance"), FIGURES / "fig_5.png")


def fig_6(runs: Path) -> None:
    """Draw pictures of the baselines and of 8 steps, which the paper shows, from the same noise."""
    pictures.draw(pictures.rows_of(runs / "table_1", ("dance_grpo", "mix_grpo", "neighbor_8")), FIGURES / "fig_6.png")


# ---------------------------------------------------------------- groups


def fig_8(runs: Path) -> None:
    """Draw groups (sigma 0.3) before and after training, from the same noise, with the reward and advantage of each member."""
    from matplotlib.figure import Figure

    from neighbor_grpo.models.devices import pick_device
    from neighbor_grpo.run.files import read_config
    from neighbor_grpo.run.weights import load_base, load_trained

    row = pictures.rows_of(runs / "table_4", ("sigma_0.3",))[0]
    run, config = row.runs[0], read_config(row.runs[0])
    models = {"before": load_base(config, pick_device("auto")), "after": load_trained(None, run, "auto").model}
    groups = {title: groups_of(model, config) for title, model in models.items()}
    prompts, members = len(groups["before"]), config.method.group_size
    figure = Figure(figsize=(1.15 * members, 3.2 * prompts), layout="constrained")
    axes = figure.subplots(2 * prompts, members)
    for n, title in enumerate(groups):
        for p, group in enumerate(groups[title]):
            (rewards,) = group.rewards.values()
            for g in range(members):
                axis = axes[2 * p + n, g]
                axis.imshow(group.pictures[g].permute(1, 2, 0))
                axis.set(xticks=[], yticks=[])
                axis.set_title(f"r {rewards[g]:.2f}\nA {group.advantages[g]:+.2f}", fontsize=7)
            axes[2 * p + n, 0].set_ylabel(f"{title}\n{group.prompt}", fontsize=6)
    figure.savefig(FIGURES / "fig_8.png", dpi=110)
    print(FIGURES / "fig_8.png")


def groups_of(model: Any, config: Any, prompts: int = 2) -> list[Any]:
    """Roll out the first groups of a run's first iteration; return them as a run keeps them (run.groups.Group)."""
    from accelerate import Accelerator

    from neighbor_grpo.config import training_prompts
    from neighbor_grpo.models.text_cache import TextCache, cache_directory
    from neighbor_grpo.rewards.set import load_rewards
    from neighbor_grpo.training.collector import Collector
    from neighbor_grpo.training.phases import Phases

    read = training_prompts(config.prompts)
    texts = TextCache(model, cache_directory(config.prompts.cache_dir), config.prompts.cache_gb)
    rewards = load_rewards(list(config.reward.train), config.reward.scorers)
    accelerator = Accelerator(cpu=model.device.type == "cpu", mixed_precision="no")

    def collector(slot: int) -> Collector:  # whose group is the first one of its rank
        return Collector(model, texts, read, rewards, range(slot, slot + 1), config, accelerator, Phases(model.device))

    return [collector(slot).experience(0).group for slot in range(prompts)]


COMMANDS = {"page": write_page, "fig_4": fig_4, "fig_5": fig_5, "fig_6": fig_6, "fig_8": fig_8}


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=list(COMMANDS))
    parser.add_argument("--runs", type=Path, default=Path("runs/paper"), help="directory of the runs (default %(default)s)")
    arguments = parser.parse_args()
    FIGURES.mkdir(exist_ok=True)
    for what in arguments.what:
        COMMANDS[what](arguments.runs)


if __name__ == "__main__":
    main()
