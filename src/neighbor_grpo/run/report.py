"""The report of a run: sample pictures, curves.png and one self-contained page, all made from the files of the run."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic
from neighbor_grpo.files.images import gallery, read_file, save_png
from neighbor_grpo.run import files
from neighbor_grpo.run.files import Figures
from neighbor_grpo.run.pages import data_url, render
from neighbor_grpo.run.record import describe_changes, read_record

PICTURES = "samples/before_after.png"
SAMPLES = "samples"  # kind of the directories in samples/
_PAGE = Path(__file__).parent / "page.html"
_SCORED = ("reward/", "eval/")  # figures of a measure, drawn together under its name
# Figures that are not drawn on their own: details of the scores, costs, and the counter.  All others are the method's.
_NOT_DRAWN = ("spread/", "failed/", "flat_groups/", "eval_spread/", "eval_failed/", "time/", "mfu/", "scorer/", "nfe_")
_NOT_DRAWN_KEYS = ("lr", "iteration")


def save_samples(directory: Path, iteration: int, images: Tensor, prompts: Sequence[str]) -> None:
    """Save pictures as directory/<iteration>/<prompt>-<seed>.png, with their prompts.

    Pictures [P, S, 3, H, W], or frames of videos [P, S, T, 3, H, W].
    """
    with atomic.directory(directory / f"{iteration:06d}", SAMPLES) as aside:
        for p, row in enumerate(images):
            for s, image in enumerate(row):
                save_png(image, aside / f"{p:02d}-{s}.png")
        (aside / "prompts.json").write_text(json.dumps(list(prompts[: len(images)])))


@dataclass(frozen=True)
class Samples:
    """Hold the pictures of an evaluation."""

    iteration: int
    images: Tensor  # [P, S, 3, H, W]
    prompts: list[str]


def read_samples(folder: Path) -> Samples:
    """Read what `save_samples` wrote for one iteration.  Raises DamagedError."""
    atomic.check(folder, SAMPLES)
    prompts = json.loads((folder / "prompts.json").read_text())
    seeds = len(list(folder.glob("00-*.png")))
    rows = [torch.stack([read_file(folder / f"{p:02d}-{s}.png") for s in range(seeds)]) for p in range(len(prompts))]
    return Samples(int(folder.name), torch.stack(rows), prompts)


def all_samples(run: Path) -> list[Samples]:
    """Read the first and the last pictures that are not damaged and show the same prompts; nothing without any."""
    base = read_record(run).base
    folders = [folder for folder in sorted((run / "samples").glob("[0-9]*")) if int(folder.name) >= base]
    first = _first_whole(folders)
    last = _first_whole(folders[::-1])
    if first is None or last is None or last.iteration == first.iteration:
        return [first] if first else []
    alike = (last.prompts, last.images.shape) == (first.prompts, first.images.shape)
    return [first, last] if alike else [first]


def _first_whole(folders: Iterable[Path]) -> Samples | None:
    """Read the first of these directories that is not damaged: the page shows what is whole."""
    for folder in folders:
        try:
            return read_samples(folder)
        except UserError:
            continue
    return None


def draw_before_after(run: Path, file: Path) -> bool:
    """Draw the first and the last pictures side by side; return whether there are any."""
    found = all_samples(run)
    titles = ["before" if one.iteration == 0 else f"after {one.iteration} iterations" for one in found]
    if found:
        with atomic.writing(file, durable=False) as aside:
            gallery({t: one.images for t, one in zip(titles, found, strict=True)}, found[0].prompts).save(aside, "PNG")
    return bool(found)


def write(run: Path) -> Path:
    """Write samples/before_after.png, curves.png and report.html from what the run has recorded; return the page."""
    lines, record = files.read_metrics(run), read_record(run)
    if not lines:
        raise UserError(f"{run} has not recorded anything yet: resume it with {files.resume_command(run)}")
    draw_curves(lines, run / "curves.png")
    pictures = draw_before_after(run, run / PICTURES)
    page = {
        "title": f"{run.name}: {lines[-1]['iteration']} iterations",
        "table": files.changes(lines, record.base),
        "base": record.base,
        "gallery": data_url(run / PICTURES) if pictures else "",
        "curves": data_url(run / "curves.png"),
        "failed": ", ".join(f"{name} {count:.0f}" for name, count in _sums(lines, ("failed/", "eval_failed/")) if count),
        "time": ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in _sums(lines, ("time/",))),
        "plan": files.read_plan(run),
        "changes": describe_changes(record.changes),
        "settings": (run / "config.yaml").read_text(encoding="utf-8"),
    }
    atomic.write(run / "report.html", render(_PAGE, page))
    return run / "report.html"


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
    figure = Figure(figsize=(12.6, 3.0 * rows))
    axes = figure.subplots(rows, 3, squeeze=False).flatten()
    # fixed margins in inches: a layout engine draws everything twice, which takes seconds
    figure.subplots_adjust(0.06, 0.45 / (3 * rows), 0.99, 1 - 0.35 / (3 * rows), wspace=0.24, hspace=0.38)
    for axis, name in zip(axes, names, strict=False):
        _draw_panel(axis, name, lines)
    for axis in axes[len(names) :]:
        axis.axis("off")
    with atomic.writing(file, durable=False) as aside:
        figure.savefig(aside, dpi=110, format="png")


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
    axis.ticklabel_format(axis="y", scilimits=(-3, 4))
    if axis.get_legend_handles_labels()[1]:
        axis.legend(fontsize=7)


def _points(lines: Sequence[Figures], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Collect the iterations where a figure was recorded, and its values."""
    points = [(line["iteration"], line[key]) for line in lines if key in line]
    return np.array([x for x, _ in points]), np.array([y for _, y in points])
