"""The report of a run: sample pictures, curves.png and one self-contained page, all made from the files of the run."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from neighbor_grpo.files.images import gallery, read_file, save_png
from neighbor_grpo.run import files
from neighbor_grpo.run.files import Figures
from neighbor_grpo.run.pages import data_url, render

_PAGE = Path(__file__).parent / "page.html"
_SCORED = ("reward/", "eval/")  # figures of a measure, drawn together under its name
# Figures that are not drawn on their own: details of the scores, costs, and the counter.  All others are the method's.
_NOT_DRAWN = ("spread/", "failed/", "flat_groups/", "eval_spread/", "eval_failed/", "time/", "mfu/", "scorer/", "nfe_")
_NOT_DRAWN_KEYS = ("lr", "iteration")


def save_samples(directory: Path, iteration: int, images: Tensor, prompts: Sequence[str]) -> None:
    """Save pictures as directory/<iteration>/<prompt>-<seed>.png, and beside the first ones in before_after.png.

    Pictures [P, S, 3, H, W], or frames of videos [P, S, T, 3, H, W].
    """
    folder = directory / f"{iteration:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    for p, row in enumerate(images):
        for s, image in enumerate(row):
            save_png(image, folder / f"{p:02d}-{s}.png")
    shown = list(prompts[: len(images)])
    (directory / "prompts.txt").write_text("\n".join(shown) + "\n", encoding="utf-8")
    columns = {"before": read_samples(directory / "000000")}
    if iteration:
        columns[f"after {iteration} iterations"] = images
    gallery(columns, shown).save(directory / "before_after.png")


def read_samples(folder: Path) -> Tensor:
    """Read the pictures that `save_samples` wrote for one iteration."""
    places = [tuple(map(int, file.stem.split("-"))) for file in folder.glob("*.png")]
    prompts, seeds = (1 + max(column) for column in zip(*places, strict=True))
    return torch.stack([torch.stack([read_file(folder / f"{p:02d}-{s}.png") for s in range(seeds)]) for p in range(prompts)])


def write(run: Path) -> None:
    """Write curves.png and report.html from metrics.jsonl, samples/, plan.txt and config.yaml."""
    lines = files.read_metrics(run)
    draw_curves(lines, run / "curves.png")
    page = {
        "title": f"{run.name}: {lines[-1]['iteration']} iterations",
        "table": files.changes(lines),
        "gallery": data_url(run / "samples" / "before_after.png"),
        "curves": data_url(run / "curves.png"),
        "failed": ", ".join(f"{name} {count:.0f}" for name, count in _sums(lines, ("failed/", "eval_failed/")) if count),
        "time": ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in _sums(lines, ("time/",))),
        "plan": (run / "plan.txt").read_text(),
        "settings": (run / "config.yaml").read_text(),
    }
    (run / "report.html").write_text(render(_PAGE, page), encoding="utf-8")


def _sums(lines: Iterable[Figures], prefixes: tuple[str, ...]) -> list[tuple[str, float]]:
    """Add up the figures with one of these prefixes over all lines, by the rest of their names."""
    total: Counter[str] = Counter()
    for line in lines:
        for key, value in line.items():
            if key.startswith(prefixes):
                total[key.split("/", 1)[1]] += value
    return list(total.items())


# ---------------------------------------------------------------- curves


def panels(lines: Sequence[Figures]) -> list[str]:
    """Return what is drawn: each measure by name, then each figure of the method by key."""
    keys = dict.fromkeys(key for line in lines for key in line)
    measures = dict.fromkeys(key.split("/", 1)[1] for key in keys if key.startswith(_SCORED))
    others = [key for key in keys if not key.startswith(_SCORED + _NOT_DRAWN) and key not in _NOT_DRAWN_KEYS]
    return [*measures, *others]


def draw_curves(lines: Sequence[Figures], file: Path) -> None:
    """Draw a panel for each measure (in training with its spread in a group, and in evaluation) and each other figure."""
    names = panels(lines)
    rows = -(-len(names) // 3)
    figure = Figure(figsize=(12.6, 3.0 * rows), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False).flatten()
    for axis, name in zip(axes, names, strict=False):
        _draw_panel(axis, name, lines)
    for axis in axes[len(names) :]:
        axis.axis("off")
    figure.savefig(file, dpi=110)


def _draw_panel(axis: Axes, name: str, lines: Sequence[Figures]) -> None:
    """Draw one measure or figure against the iterations."""
    x, y = _points(lines, f"reward/{name}")
    if len(x):
        spread = _points(lines, f"spread/{name}")[1]
        axis.plot(x, y, lw=1, label="training")
        axis.fill_between(x, y - spread, y + spread, alpha=0.15, lw=0)
    x, y = _points(lines, f"eval/{name}")
    if len(x):
        axis.plot(x, y, marker="o", label="evaluation")
    axis.plot(*_points(lines, name), lw=1)
    axis.set_title(name, fontsize=10)
    axis.set_xlabel("iteration", fontsize=8)
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[1]:
        axis.legend(fontsize=7)


def _points(lines: Sequence[Figures], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Collect the iterations where a figure was recorded, and its values."""
    points = [(line["iteration"], line[key]) for line in lines if key in line]
    return np.array([x for x, _ in points]), np.array([y for _, y in points])
