"""What a run directory shows: sample pictures, curves.png and one self-contained page, all from the files in it."""

import base64
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from jinja2 import Environment, select_autoescape
from matplotlib.figure import Figure
from torch import Tensor

from neighbor_grpo.files.images import gallery, read_file, save_png
from neighbor_grpo.run import files

_PAGE = Path(__file__).parent / "page.html"


def save_samples(directory: Path, iteration: int, images: Tensor, prompts: list[str]) -> None:
    """directory/<iteration>/<prompt>-<seed>.png, and before_after.png of the first and this one.

    Pictures [P, S, 3, H, W], or frames of videos [P, S, T, 3, H, W].
    """
    folder = directory / f"{iteration:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    for p, row in enumerate(images):
        for s, image in enumerate(row):
            save_png(image, folder / f"{p:02d}-{s}.png")
    shown = prompts[: len(images)]
    (directory / "prompts.txt").write_text("\n".join(shown) + "\n", encoding="utf-8")
    columns = {"before": read_samples(directory / "000000")}
    if iteration:
        columns[f"after {iteration} iterations"] = images
    gallery(columns, shown).save(directory / "before_after.png")


def read_samples(folder: Path) -> Tensor:
    """What save_samples wrote."""
    files = [tuple(map(int, file.stem.split("-"))) for file in folder.glob("*.png")]
    prompts, seeds = (1 + max(column) for column in zip(*files, strict=True))
    return torch.stack([torch.stack([read_file(folder / f"{p:02d}-{s}.png") for s in range(seeds)]) for p in range(prompts)])


def data_url(file: Path) -> str:
    """A PNG to be written into a page."""
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()


def curves(metrics: list[dict], file: Path) -> None:
    """A panel for each reward (training mean, with the spread in a group, and held-out) and for each watched measure."""
    keys = dict.fromkeys(key for line in metrics for key in line)
    names = list(dict.fromkeys(key.split("/", 1)[1] for key in keys if key.startswith(("reward/", "eval/"))))
    health = ["ratio/noise_floor", "ratio/clipped", "grad_norm"]
    rows = -(-(len(names) + len(health)) // 3)
    figure = Figure(figsize=(12.6, 3.0 * rows), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False).flatten()
    styles = {"reward/": {"lw": 1, "label": "training"}, "eval/": {"marker": "o", "label": "held out"}, "": {"lw": 1}}
    for axis, name in zip(axes, names + health, strict=False):
        for prefix, style in styles.items():
            points = [(line["iteration"], line[prefix + name]) for line in metrics if prefix + name in line]
            if points:
                x, y = map(np.array, zip(*points, strict=True))
                axis.plot(x, y, **style)
                if prefix == "reward/":
                    spread = np.array([line[f"spread/{name}"] for line in metrics if prefix + name in line])
                    axis.fill_between(x, y - spread, y + spread, alpha=0.15, lw=0)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("iteration", fontsize=8)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=7)
    for axis in axes[len(names + health) :]:
        axis.axis("off")
    figure.savefig(file, dpi=110)


def _failures(metrics: list[dict]) -> Counter[str]:
    """Pictures without a score, by reward, in training and evaluation."""
    failed: Counter[str] = Counter()
    for line in metrics:
        for key, count in line.items():
            if key.startswith(("failed/", "eval_failed/")) and count:
                failed[key.split("/", 1)[1]] += int(count)
    return failed


def write(run_dir: Path) -> None:
    """curves.png and report.html from metrics.jsonl, samples/, plan.txt and config.yaml."""
    metrics = files.metrics(run_dir)
    curves(metrics, run_dir / "curves.png")
    evaluated = [line for line in metrics if any(key.startswith("eval/") for key in line)]
    first, last = evaluated[0], evaluated[-1]
    phases: Counter[str] = Counter()
    for line in metrics:
        phases.update({key: value for key, value in line.items() if key.startswith("time/")})

    page = (
        Environment(autoescape=select_autoescape(default=True))
        .from_string(_PAGE.read_text())
        .render(
            title=f"{run_dir.name}: {metrics[-1]['iteration']} iterations",
            table=[(key[5:], first[key], last[key]) for key in first if key.startswith("eval/") and key in last],
            gallery=data_url(run_dir / "samples" / "before_after.png"),
            curves=data_url(run_dir / "curves.png"),
            failed=", ".join(f"{name} {count}" for name, count in _failures(metrics).items()),
            time=", ".join(f"{key[5:]} {seconds:.1f} s" for key, seconds in phases.items()),
            plan=(run_dir / "plan.txt").read_text(),
            settings=(run_dir / "config.yaml").read_text(),
        )
    )
    (run_dir / "report.html").write_text(page, encoding="utf-8")
