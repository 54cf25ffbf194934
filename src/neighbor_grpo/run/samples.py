"""The sample pictures of a run: written at each evaluation, and read for its page without torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from neighbor_grpo.files import atomic
from neighbor_grpo.files.frames import gallery, read_frames
from neighbor_grpo.run.record import read_record

if TYPE_CHECKING:  # torch takes seconds to load, and a page needs only the files
    from torch import Tensor

SAMPLES = "samples"  # folder of a run, and kind of the directories in it
PICTURES = "samples/before_after.png"


def save_samples(directory: Path, iteration: int, images: "Tensor", prompts: Sequence[str]) -> None:
    """Save pictures as directory/<iteration>/<prompt>-<seed>.png, with their prompts.

    Pictures [P, S, 3, H, W], or frames of videos [P, S, T, 3, H, W].
    """
    from neighbor_grpo.files.images import save_png

    with atomic.directory(directory / f"{iteration:06d}", SAMPLES) as aside:
        for p, row in enumerate(images):
            for s, image in enumerate(row):
                save_png(image, aside / f"{p:02d}-{s}.png")
        (aside / "prompts.json").write_text(json.dumps(list(prompts[: len(images)])))


@dataclass(frozen=True)
class Samples:
    """Hold the pictures of an evaluation: the file of each seed of each prompt."""

    iteration: int
    files: tuple[tuple[Path, ...], ...]  # [P][S]
    prompts: list[str]

    @cached_property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Return prompts, seeds, frames, height and width."""
        with Image.open(self.files[0][0]) as image:
            return len(self.files), len(self.files[0]), getattr(image, "n_frames", 1), image.height, image.width

    def frames(self) -> list[list[list[Image.Image]]]:
        """Read the frames of each picture, by prompt and seed; a picture has one."""
        return [[read_frames(file) for file in row] for row in self.files]

    @property
    def title(self) -> str:
        """Return "before" or "after N iterations"."""
        return "before" if self.iteration == 0 else f"after {self.iteration} iterations"


def read_samples(folder: Path) -> Samples:
    """Read what `save_samples` wrote for one iteration.  Raises DamagedError."""
    atomic.check(folder, SAMPLES)
    prompts = json.loads((folder / "prompts.json").read_text())
    seeds = range(len(list(folder.glob("00-*.png"))))
    files = tuple(tuple(folder / f"{p:02d}-{s}.png" for s in seeds) for p in range(len(prompts)))
    return Samples(int(folder.name), files, prompts)


def all_samples(run: Path, until: int | None = None) -> list[Samples]:
    """Read the first and the last pictures that are not damaged and show the same prompts; nothing without any.

    until: the iteration of the last ones, None = of the run.
    """
    base = read_record(run).base
    folders = [folder for folder in sorted((run / SAMPLES).glob("[0-9]*")) if int(folder.name) >= base]
    folders = [folder for folder in folders if until is None or int(folder.name) <= until]
    first = next(atomic.undamaged(folders, read_samples), None)
    last = next(atomic.undamaged(folders[::-1], read_samples), None)
    if first is None or last is None or last.iteration == first.iteration:
        return [first] if first else []
    return [first, last] if (last.prompts, last.shape) == (first.prompts, first.shape) else [first]


def titled(found: Sequence[Samples]) -> Mapping[str, list[list[list[Image.Image]]]]:
    """Return the frames of pictures by their titles."""
    return {one.title: one.frames() for one in found}


def draw_before_after(run: Path, file: Path) -> bool:
    """Draw the first and the last pictures side by side; return whether there are any."""
    found = all_samples(run)
    if found:
        with atomic.writing(file) as aside:
            gallery(titled(found), found[0].prompts).save(aside, "PNG")
    return bool(found)
