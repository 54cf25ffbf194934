"""The folders of a study: which models' pictures a folder holds, by prompt and seed.

sample, evaluate   pictures.json says what the folder holds: one model
compare            the last pictures of the first seed of each method: one model a method
a run              its last pictures: one model; alone in a study, its first and last pictures: two models
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic
from neighbor_grpo.files.listing import LISTING, Picture, read_listing
from neighbor_grpo.run.record import read_record

_SAMPLES = "samples"  # kind of the directories that a run keeps its pictures in
_SAMPLE = re.compile(r"(\d+)-(\d+)\.png")  # of these pictures: prompt, seed


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
        return _before_and_after(folder) if _is_run(folder) and not name else _models(name, folder)
    return [source for entry in given for source in _models(*_split(entry))]


def _split(entry: str) -> tuple[str, Path]:
    """Take NAME=DIR apart; the name is empty where none is given, and a folder may have "=" in its name."""
    name, equals, folder = entry.partition("=")
    if not equals or Path(entry).is_dir():
        return "", _folder(entry)
    return name, _folder(folder)


def _folder(text: str) -> Path:
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise UserError(f"no folder {text}: give the folder of a sample, an evaluation, a comparison or a run")
    return folder


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()


def _models(name: str, folder: Path) -> list[Source]:
    """Read the models in a folder of any kind."""
    title = name or folder.resolve().name
    if (folder / LISTING).is_file():
        return [Source(title, folder, tuple(read_listing(folder)))]
    if _is_run(folder):
        return [_of_run(title, folder)]
    if (folder / "comparison.yaml").is_file():
        return [
            _of_run(f"{name}/{method.name}" if name else method.name, seeds[0])
            for method in sorted(path for path in folder.iterdir() if path.is_dir())
            if (seeds := sorted(method.glob("seed-*"), key=lambda path: (len(path.name), path.name)))
        ]
    read_listing(folder)  # says what is missing
    raise AssertionError


def _of_run(model: str, run: Path) -> Source:
    """Read the last pictures of a run."""
    last = next(iter(_whole(reversed(_iterations(run)))), None)
    if last is None:
        raise UserError(
            f"{run} has no pictures yet: let the run evaluate once, or draw some with `neighbor-grpo sample --run {run}`"
        )
    return Source(model, last, tuple(_samples(last)))


def _before_and_after(run: Path) -> list[Source]:
    """Read the first and the last pictures of a run, of the same prompts and seeds, as two models."""
    base = read_record(run).base  # the evaluations before it had other prompts or settings
    after = _of_run("after", run)
    before = next(iter(_whole(path for path in _iterations(run) if int(path.name) >= base)), after.folder)
    if before == after.folder:
        raise UserError(f"{run} has pictures of one iteration only, and a study compares two models: train on, or add a folder")
    return [Source("before", before, tuple(_samples(before))), after]


def _iterations(run: Path) -> list[Path]:
    return sorted((run / _SAMPLES).glob("[0-9]*"))


def _whole(folders: Iterable[Path]) -> Iterable[Path]:
    """Leave out the directories that are damaged."""
    for folder in folders:
        try:
            atomic.check(folder, _SAMPLES)
        except UserError:
            continue
        yield folder


def _samples(folder: Path) -> list[Picture]:
    """List the pictures that a run keeps of an iteration."""
    prompts = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
    found = [(int(match[1]), int(match[2]), path.name) for path in folder.iterdir() if (match := _SAMPLE.fullmatch(path.name))]
    return [Picture(prompts[number], number, seed, name) for number, seed, name in sorted(found) if number < len(prompts)]
