"""A study: models whose pictures of the same prompts and seeds are compared, and the questions that raters answer."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from neighbor_grpo.arena.media import check_picture
from neighbor_grpo.arena.sources import Source, read_sources
from neighbor_grpo.arena.votes import OVERALL
from neighbor_grpo.errors import UserError, shown


@dataclass(frozen=True)
class Pair:
    """Hold what is compared: two models' pictures of a prompt and a seed."""

    first: int  # number of a model
    second: int
    prompt: int
    seed: int  # number of the picture of the prompt


@dataclass(frozen=True)
class StudyInfo:
    """Hold what a database knows of its study."""

    models: list[str]
    prompts: list[str]
    categories: list[str | None]  # of the prompts
    questions: list[str]  # the first is the overall one
    seeds: list[list[int]]  # of each prompt
    pictures: str  # SHA-256 of all picture files

    def pairs(self) -> list[Pair]:
        """List all pairs, in the order of their numbers in the database."""
        both = list(combinations(range(len(self.models)), 2))
        return [
            Pair(first, second, prompt, seed)
            for prompt, seeds in enumerate(self.seeds)
            for seed in range(len(seeds))
            for first, second in both
        ]

    def to_json(self) -> str:
        """Write it as the database holds it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "StudyInfo":
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))

    def refuse_other(self, other: "StudyInfo", place: str) -> None:
        """Raise UserError unless the database at `place` holds this study, `other`."""
        for key, mine in asdict(self).items():
            if (theirs := getattr(other, key)) != mine:
                how = "other picture files" if key == "pictures" else f"{key} {_short(theirs)}, not {_short(mine)}"
                raise UserError(
                    f"{place} holds another study, with {how}: give the folders and questions of that one, or another --db"
                )


@dataclass(frozen=True)
class Study:
    """Hold a study with the files of its pictures."""

    info: StudyInfo
    files: Mapping[tuple[int, int, int], Path]  # by model, prompt, number of the picture of the prompt


def read_study(given: Sequence[str], questions: Sequence[str] = ()) -> Study:
    """Read folders, each DIR or NAME=DIR, and check that they can be compared.

    Raises UserError for fewer than two models, two of one name, prompts or seeds that differ, missing and broken pictures.
    """
    sources = read_sources(given)
    names = [source.model for source in sources]
    if len(sources) < 2:
        raise UserError(f"one model only, {names[0]}: give the folders of two or more models")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two models are called {twice}: name them with NAME=DIR")
    rows = [_by_place(source) for source in sources]
    for source, row in zip(sources[1:], rows[1:], strict=True):
        _refuse_mismatch(sources[0], rows[0], source, row)
    keys = list(rows[0])
    numbers = sorted({number for number, _ in keys})
    seeds = {n: [seed for number, seed in keys if number == n] for n in numbers}
    files = {
        (m, p, s): row[n, seed][1]
        for m, row in enumerate(rows)
        for p, n in enumerate(numbers)
        for s, seed in enumerate(seeds[n])
    }
    prompts = {picture.number: picture for source in reversed(sources) for picture in source.pictures}
    categories = {n: next((c for source in sources if (c := _category(source, n))), None) for n in numbers}
    info = StudyInfo(
        names,
        [prompts[n].prompt for n in numbers],
        [categories[n] for n in numbers],
        list(dict.fromkeys([OVERALL, *questions])),
        [seeds[n] for n in numbers],
        _check_all(files),
    )
    return Study(info, files)


def _category(source: Source, number: int) -> str | None:
    return next((picture.category for picture in source.pictures if picture.number == number), None)


def _by_place(source: Source) -> dict[tuple[int, int], tuple[str, Path]]:
    """Return text and file by the number of the prompt and the seed."""
    found = {(picture.number, picture.seed): (picture.prompt, source.folder / picture.file) for picture in source.pictures}
    if len(found) < len(source.pictures):
        raise UserError(f"{source.folder} lists two pictures of one prompt and seed: draw it again with each seed once")
    return dict(sorted(found.items()))


def _refuse_mismatch(
    first: Source,
    wanted: Mapping[tuple[int, int], tuple[str, Path]],
    other: Source,
    row: Mapping[tuple[int, int], tuple[str, Path]],
) -> None:
    """Raise UserError that names the first prompt or seed in which two models differ."""
    remedy = "draw both with the same prompts and seeds"
    for key in sorted({*wanted, *row}):
        number, seed = key
        if key not in wanted or key not in row:
            has, lacks = (other, first) if key in row else (first, other)
            text = shown((wanted.get(key) or row[key])[0])
            raise UserError(
                f"{lacks.folder} has no picture of prompt {number}, {text}, seed {seed}, which {has.folder} has: {remedy}"
            )
        if wanted[key][0] != row[key][0]:
            texts = f"{shown(wanted[key][0])} in {first.folder} and {shown(row[key][0])} in {other.folder}"
            raise UserError(f"prompt {number} is {texts}: {remedy}")


def _check_all(files: Mapping[Any, Path]) -> str:
    """Check that every picture can be read; return the SHA-256 of all of them."""
    whole = hashlib.sha256()
    for file in files.values():
        if not file.is_file():
            raise UserError(f"{file} is missing: draw the pictures of its folder again")
        whole.update(hashlib.sha256(file.read_bytes()).digest())
        check_picture(file)
    return whole.hexdigest()


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 200 else f"{text[:197]}..."
