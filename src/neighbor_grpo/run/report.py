"""The report of a run: sample pictures and one self-contained page, all made from the files of the run."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
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


def all_samples(run: Path, until: int | None = None) -> list[Samples]:
    """Read the first and the last pictures that are not damaged and show the same prompts; nothing without any.

    until: the iteration of the last ones, None = of the run.
    """
    base = read_record(run).base
    folders = [folder for folder in sorted((run / "samples").glob("[0-9]*")) if int(folder.name) >= base]
    folders = [folder for folder in folders if until is None or int(folder.name) <= until]
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
    if found:
        with atomic.writing(file) as aside:
            gallery(titled(found), found[0].prompts).save(aside, "PNG")
    return bool(found)


def titled(found: Sequence[Samples]) -> dict[str, Tensor]:
    """Return pictures by the titles "before" and "after N iterations"."""
    return {"before" if one.iteration == 0 else f"after {one.iteration} iterations": one.images for one in found}


def write(run: Path) -> Path:
    """Write samples/before_after.png and report.html from what the run has recorded; return the page."""
    lines, record = files.read_metrics(run), read_record(run)
    if not lines:
        raise UserError(f"{run} has not recorded anything yet: resume it with {files.resume_command(run)}")
    pictures = draw_before_after(run, run / PICTURES)
    page = {
        "title": f"{run.name}: {lines[-1]['iteration']} iterations",
        "table": files.changes(lines, record.base),
        "base": record.base,
        "gallery": data_url(run / PICTURES) if pictures else "",
        "charts": charts(lines),
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


def charts(lines: Sequence[Figures]) -> list[dict[str, Any]]:
    """Return what charts.js draws: a panel for each measure (in training with its spread, in evaluation) and other figure."""
    return [_chart(name, lines) for name in panels(lines)]


def _chart(name: str, lines: Sequence[Figures]) -> dict[str, Any]:
    """Collect the lines of one panel; a figure that was not recorded, or is not finite, is None."""
    keys = {f"reward/{name}": "training", f"eval/{name}": "evaluation", name: name}
    held = [line for line in lines if keys.keys() & line.keys()]
    drawn = {key: label for key, label in keys.items() if any(key in line for line in held)}
    curves = [{"label": label, "y": [_value(line.get(key)) for line in held]} for key, label in drawn.items()]
    reward, spread = f"reward/{name}", f"spread/{name}"
    edges = {
        edge: [_value(line[reward] + sign * line[spread]) if {reward, spread} <= line.keys() else None for line in held]
        for edge, sign in (("low", -1), ("high", 1))
    }
    return {
        "title": name,
        "x": [line["iteration"] for line in held],
        "lines": curves,
        "band": edges if any(spread in line for line in held) else None,
    }


def _value(value: float | None) -> float | None:
    """Round to six digits, as many as a chart can show; None for what cannot be drawn."""
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None
