"""The folders of a study: which models' pictures a folder holds, by prompt and seed.

sample, evaluate   pictures.json says what the folder holds: one model
compare            the last pictures of the first seed of each method: one model a method
a run              its last pictures: one model; alone in a study, its first and last pictures: two models
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neighbor_grpo.errors import UserError
from neighbor_grpo.files.listing import LISTING, Picture, read_listing
from neighbor_grpo.files.text import expand_home
from neighbor_grpo.run.record import COMPARISON, is_run
from neighbor_grpo.run.samples import SAMPLES, Samples, all_samples


@dataclass(frozen=True)
class Source:
    """Hold the pictures of a model."""

    model: str
    folder: Path
    pictures: tuple[Picture, ...]


def read_sources(given: Sequence[str]) -> list[Source]:
    """Read the models of folders, each as DIR or NAME=DIR.  Raises UserError for a folder that holds none."""
    if len(given) == 1:
        name, folder = _split(given[0])
        return _before_and_after(folder) if is_run(folder) and not name else _models(name, folder)
    return [source for entry in given for source in _models(*_split(entry))]


def _split(entry: str) -> tuple[str, Path]:
    """Take NAME=DIR apart; the name is empty where none is given, and a folder may have "=" in its name."""
    name, equals, folder = entry.partition("=")
    if not equals or Path(entry).is_dir():
        return "", _folder(entry)
    return name, _folder(folder)


def _folder(text: str) -> Path:
    folder = Path(expand_home(text))
    if not folder.is_dir():
        raise UserError(f"no folder {text}: give the folder of a sample, an evaluation, a comparison or a run")
    return folder


def _models(name: str, folder: Path) -> list[Source]:
    """Read the models in a folder of any kind."""
    title = name or folder.resolve().name
    if (folder / LISTING).is_file():
        return [Source(title, folder, tuple(read_listing(folder)))]
    if is_run(folder):
        return [_of_run(title, folder)]
    if (folder / COMPARISON).is_file():
        return [
            _of_run(f"{name}/{method.name}" if name else method.name, seeds[0])
            for method in sorted(path for path in folder.iterdir() if path.is_dir())
            if (seeds := sorted(method.glob("seed-*"), key=lambda path: (len(path.name), path.name)))
        ]
    read_listing(folder)  # says what is missing
    raise AssertionError


def _of_run(model: str, run: Path) -> Source:
    """Read the last pictures of a run."""
    found = all_samples(run)
    if not found:
        raise UserError(
            f"{run} has no pictures yet: let the run evaluate once, or draw some with `neighbor-grpo sample --run {run}`"
        )
    return _source(model, run, found[-1])


def _before_and_after(run: Path) -> list[Source]:
    """Read the first and the last pictures of a run, of the same prompts and seeds, as two models."""
    found = all_samples(run)
    if len(found) < 2:
        raise UserError(f"{run} has pictures of one iteration only, and a study compares two models: train on, or add a folder")
    return [_source(model, run, one) for model, one in zip(("before", "after"), found, strict=True)]


def _source(model: str, run: Path, samples: Samples) -> Source:
    """List the pictures that a run keeps of an iteration."""
    folder = run / SAMPLES / f"{samples.iteration:06d}"
    pictures = tuple(
        Picture(text, number, seed, file.name)
        for number, (text, row) in enumerate(zip(samples.prompts, samples.files, strict=True))
        for seed, file in enumerate(row)
    )
    return Source(model, folder, pictures)
