"""The pictures that are judged: drawn from fixed noise and kept as files, or a folder of somebody's own."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from neighbor_grpo.errors import UserError
from neighbor_grpo.files.images import read_file, save_png
from neighbor_grpo.models.registry import FlowModel
from neighbor_grpo.models.sampling import fixed_noise, sample
from neighbor_grpo.models.text_cache import encoded
from neighbor_grpo.prompts.reading import Prompt

KINDS = (".png", ".jpg", ".jpeg", ".webp")


class Pictures(Protocol):
    seeds: int  # S, of each prompt

    def file(self, prompt: int, seed: int) -> Path:
        """Where a picture lies."""

    def __call__(self, numbers: Sequence[int]) -> Tensor:
        """Of prompts by number: [p, S, 3, H, W] in [0, 1], as the files hold them; videos [p, S, T, 3, H, W]."""


@dataclass(frozen=True)
class Drawn:
    """Drawn by a model where they are not there yet, so that an evaluation that was stopped goes on."""

    model: FlowModel
    prompts: Sequence[Prompt]
    seeds: int
    num_steps: int
    solver: str
    folder: Path

    def file(self, prompt: int, seed: int) -> Path:
        return self.folder / f"{prompt:05d}-{seed}.png"

    def __call__(self, numbers: Sequence[int]) -> Tensor:
        missing = [p for p in numbers if not all(self.file(p, s).is_file() for s in range(self.seeds))]
        if missing:
            cond = encoded(self.model, [self.prompts[p] for p in missing])
            noise = fixed_noise(self.model, missing, self.seeds)
            for p, row in zip(missing, sample(self.model, cond, noise, self.num_steps, self.solver), strict=True):
                for s, image in enumerate(row):
                    aside = self.file(p, s).with_suffix(f".{os.getpid()}")  # a file that is there is whole
                    save_png(image, aside)
                    aside.rename(self.file(p, s))
        return torch.stack([torch.stack([read_file(self.file(p, s)) for s in range(self.seeds)]) for p in numbers])


@dataclass(frozen=True)
class Folder:
    """Files in the order of their names, the same number for each prompt."""

    files: tuple[Path, ...]
    seeds: int

    @classmethod
    def of(cls, folder: Path, prompts: int) -> "Folder":
        if not folder.is_dir():
            raise UserError(f"no folder of pictures at {folder}")
        files = tuple(sorted(path for path in folder.rglob("*") if path.suffix.lower() in KINDS))
        if not files:
            raise UserError(f"{folder} holds no pictures ({', '.join(KINDS)})")
        if len(files) % prompts:
            raise UserError(
                f"{folder} holds {len(files)} pictures, which is no multiple of the {prompts} prompts: in the order of their "
                "names there must be equally many for each prompt"
            )
        return cls(files, len(files) // prompts)

    def file(self, prompt: int, seed: int) -> Path:
        return self.files[prompt * self.seeds + seed]

    def __call__(self, numbers: Sequence[int]) -> Tensor:
        rows = [[read_file(self.file(p, s)) for s in range(self.seeds)] for p in numbers]
        first = rows[0][0].shape
        for p, row in zip(numbers, rows, strict=True):
            for s, image in enumerate(row):
                if image.shape != first:
                    raise UserError(
                        f"{self.file(p, s)} is {_size(image)}, {self.file(numbers[0], 0)} {_size(rows[0][0])}: "
                        "pictures judged together have one size"
                    )
        return torch.stack([torch.stack(row) for row in rows])


def _size(x: Tensor) -> str:
    frames = f"{x.shape[0]} frames of " if x.ndim == 4 else ""
    return f"{frames}{x.shape[-1]} x {x.shape[-2]} pixels"
