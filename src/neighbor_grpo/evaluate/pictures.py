"""The pictures of an evaluation: drawn by a model from fixed noise and kept as files, or a given folder of files."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic
from neighbor_grpo.files.images import read_file, save_png
from neighbor_grpo.models.family import Family
from neighbor_grpo.models.sampling import fixed_noise, sample
from neighbor_grpo.models.text_cache import encode_prompts
from neighbor_grpo.prompts.prompt import Prompt

KINDS = (".png", ".jpg", ".jpeg", ".webp")


class Pictures(Protocol):
    """Give S pictures of each prompt."""

    @property
    def seeds(self) -> int:
        """Return S."""

    def file(self, prompt: int, seed: int) -> Path:
        """Return the file of a picture."""

    def read(self, numbers: Sequence[int]) -> Tensor:
        """Read the pictures [p, S, 3, H, W] in [0, 1] of prompts by number; videos [p, S, T, 3, H, W]."""


@dataclass(frozen=True)
class Drawn:
    """Draw pictures by a model, except those that `folder` already holds."""

    model: Family
    prompts: Sequence[Prompt]
    seeds: int
    num_steps: int
    solver: str
    folder: Path

    def file(self, prompt: int, seed: int) -> Path:
        """Return the file of a picture."""
        return self.folder / f"{prompt:05d}-{seed}.png"

    def read(self, numbers: Sequence[int]) -> Tensor:
        """Read pictures as the files hold them, after drawing those that are missing or damaged."""
        known = {p: self._known(p) for p in numbers}
        missing = [p for p in known if known[p] is None]
        if missing:
            cond = encode_prompts(self.model, [self.prompts[p] for p in missing])
            noise = fixed_noise(self.model, missing, self.seeds)
            for p, row in zip(missing, sample(self.model, cond, noise, self.num_steps, self.solver), strict=True):
                for s, image in enumerate(row):
                    with atomic.writing(self.file(p, s), durable=False) as aside:
                        save_png(image, aside)
        again = [images if (images := known[p]) is not None else self._read(p) for p in numbers]
        return torch.stack(again)

    def _known(self, prompt: int) -> Tensor | None:
        """Read the pictures of a prompt; None where one is missing or damaged."""
        try:
            return self._read(prompt)
        except UserError:
            return None

    def _read(self, prompt: int) -> Tensor:
        return torch.stack([read_file(self.file(prompt, s)) for s in range(self.seeds)])


@dataclass(frozen=True)
class Folder:
    """Read a folder of pictures in the natural order of their names (2 before 10), the same number for each prompt."""

    files: tuple[Path, ...]
    seeds: int

    @classmethod
    def of(cls, folder: Path, prompts: int) -> "Folder":
        """Divide the pictures in `folder` over so many prompts.  Raises UserError where they do not divide."""
        if not folder.is_dir():
            raise UserError(f"no folder {folder}: give --images a folder of pictures")
        found = (path for path in folder.rglob("*") if path.suffix.lower() in KINDS)
        files = tuple(sorted(found, key=lambda path: natural(path.relative_to(folder).as_posix())))
        if not files:
            raise UserError(f"no pictures in {folder}: give a folder with {', '.join(KINDS)} files")
        if len(files) % prompts:
            raise UserError(
                f"{folder} holds {len(files)} pictures, not a multiple of the {prompts} prompts: give equally many pictures of "
                "each prompt, sorted by name in the order of the prompts"
            )
        return cls(files, len(files) // prompts)

    def file(self, prompt: int, seed: int) -> Path:
        """Return the file of a picture."""
        return self.files[prompt * self.seeds + seed]

    def read(self, numbers: Sequence[int]) -> Tensor:
        """Read pictures.  Raises UserError where their sizes differ."""
        rows = [[read_file(self.file(p, s)) for s in range(self.seeds)] for p in numbers]
        first = rows[0][0].shape
        for p, row in zip(numbers, rows, strict=True):
            for s, image in enumerate(row):
                if image.shape != first:
                    raise UserError(
                        f"{self.file(p, s)} is {_size(image)}, {self.file(numbers[0], 0)} is {_size(rows[0][0])}: "
                        "give pictures of one size"
                    )
        return torch.stack([torch.stack(row) for row in rows])


def natural(name: str) -> tuple[list[int | str], str]:
    """Return the key of a name in natural order: numbers in it by their value.

    >>> sorted(["b", "a10", "a2", "a02"], key=natural)
    ['a02', 'a2', 'a10', 'b']
    """
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)], name


def _size(x: Tensor) -> str:
    """Word the size of a picture or video."""
    frames = f"{x.shape[0]} frames of " if x.ndim == 4 else ""
    return f"{frames}{x.shape[-1]} x {x.shape[-2]} pixels"
