"""From the rows of a table to prompts: which column is the text, and which others are its metadata."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neighbor_grpo.errors import UserError, shown
from neighbor_grpo.files.text import expand_home
from neighbor_grpo.prompts.prompt import Prompt, is_text

TEXTS = ("prompt", "prompts", "text", "texts", "caption", "captions")  # names, in any case, of what can be the text
LONGEST = 100_000  # characters of a text
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Choice:
    """Say what is read of a file of prompts; None: what is found there."""

    key: str | None = None  # the column of the texts
    split: str | None = None  # of a dataset
    metadata: Sequence[str] | None = None  # columns that are kept; None: all others


ALL = Choice()


@dataclass(frozen=True)
class Table:
    """Hold what a file with columns has; `rows`: the rows with these columns, each with its place for errors."""

    name: str
    folder: Path  # from which paths of pictures count
    columns: Sequence[str]
    rows: Callable[[Sequence[str]], Iterable[tuple[str, Row]]]


def prompts_of(table: Table, choice: Choice) -> list[Prompt]:
    """Return the prompts of a table.  Raises UserError that names the place of whatever is wrong."""
    if not table.columns:
        raise UserError(f"{table.name} is empty: write a prompt into it")
    key = _text_column(table, choice.key)
    for name in choice.metadata or ():
        _known(table, name, "prompts.metadata")
    kept = [name for name in (table.columns if choice.metadata is None else choice.metadata) if name != key]
    prompts = [_prompt(table.folder, place, row, key, kept) for place, row in table.rows([key, *kept])]
    if not prompts:
        raise UserError(f"{table.name} is empty: write a prompt into it")
    return prompts


def _text_column(table: Table, key: str | None) -> str:
    """Return the column of the texts: the chosen one, or "prompt", or the only one with a name out of TEXTS."""
    if key is not None:
        return _known(table, key, "prompts.key")
    found = [name for name in table.columns if name.lower() in TEXTS]
    if "prompt" not in table.columns and len(found) != 1:
        said = f"{' and '.join(map(shown, found))} may all be" if found else f"none of {_listed(table.columns)} is known to be"
        raise UserError(f"{table.name}: {said} the prompts: choose a column with prompts.key (--prompts-key)")
    return "prompt" if "prompt" in table.columns else found[0]


def _known(table: Table, name: str, setting: str) -> str:
    if name not in table.columns:
        raise UserError(f"{table.name} has no column {shown(name)}: choose {setting} among {_listed(table.columns)}")
    return name


def _listed(columns: Sequence[str]) -> str:
    return shown(", ".join(columns), 300)


def _prompt(folder: Path, place: str, row: Row, key: str, kept: Iterable[str]) -> Prompt:
    text = row.get(key)
    if not isinstance(text, str) or not text.strip() or not is_text(text):
        raise UserError(f"{place}: {shown(key)} must be a text that is not empty")
    if len(text) > LONGEST:
        raise UserError(f"{place} has more than {LONGEST:,} characters: write one prompt a row")
    metadata = {name: row[name] for name in kept if name in row}
    for name, value in metadata.items():
        _check_json(place, name, value)
    return Prompt(text, _with_pictures(folder, place, metadata))


def _check_json(place: str, name: str, value: Any) -> None:
    """Raise UserError for what JSON cannot hold: a run keeps and sends metadata as JSON."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:  # an object of another type, NaN, half a character
        remedy = "choose the columns that are kept with prompts.metadata=[NAME, ...] (--prompts-metadata)"
        raise UserError(f"{place}: {shown(name)} is no JSON ({shown(value, 40)}): {remedy}") from error


def _with_pictures(folder: Path, place: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """Replace the names of source pictures by their paths; null is no picture."""
    metadata = {name: value for name, value in metadata.items() if name not in ("image", "images") or value is not None}
    if "image" in metadata and "images" in metadata:
        raise UserError(f'{place} has both "image" and "images": give one of them')
    if "image" in metadata:
        metadata["image"] = _find_picture(folder, place, metadata["image"])
    if "images" in metadata:
        if not isinstance(metadata["images"], list):
            raise UserError(f'{place}: "images" must be a list of files; for one picture write "image"')
        metadata["images"] = [_find_picture(folder, place, name) for name in metadata["images"]]
    return metadata


def _find_picture(folder: Path, place: str, name: object) -> str:
    """Return the path of a picture that a row names."""
    picture = folder / expand_home(name) if isinstance(name, str) else None
    if picture is None or not os.path.isfile(picture):
        raise UserError(f"{place}: no picture {shown(name)}: write the path of a file, from {folder} or absolute")
    return str(picture)
