"""Prompts: read from files, hashed, repeated for each picture."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from neighbor_grpo.errors import UserError, shown
from neighbor_grpo.files.text import expand_home, read_text
from neighbor_grpo.scenes.world import PROMPTS as SCENES

SETS = {file.stem: file for file in sorted((Path(__file__).parent / "sets").iterdir())}
MOST_BYTES, LONGEST, DEEPEST = 2**30, 100_000, 50  # of a file; characters of a line; levels of its metadata


@dataclass(frozen=True)
class Prompt:
    """Hold a text, and what a prompt file says beside it."""

    text: str
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> tuple[Path, ...]:
        """Return the source pictures: those of the key "images", or the one of the key "image"."""
        names = [self.metadata["image"]] if "image" in self.metadata else self.metadata.get("images", [])
        return tuple(map(Path, names))


def read_prompts(path: str, held_out: bool = False) -> list[Prompt]:
    """Read a .txt file, a prompt a line, or a .jsonl file, an object with "prompt" a line; its other keys are metadata.

    The key "image" is a source picture, and "images" a list of them: files, by their paths from the prompt file or absolute.
    "scenes" is the prompt set of the bundled model, and the names in SETS are test sets of the field.  Only the end of a line
    divides prompts.  Raises UserError that names file and line.
    """
    file = _file(path, held_out)
    if not exists(path):
        raise UserError(f"no prompt file {shown(path, 200)}: give a .txt or .jsonl file, or one of scenes, {', '.join(SETS)}")
    text = read_text(file, "prompt file", MOST_BYTES)
    lines = [(n, line.strip()) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"prompt file {shown(path, 200)} is empty: write one prompt a line")
    if too_long := next((number for number, line in lines if len(line) > LONGEST), None):
        raise UserError(f"{path} line {too_long} has more than {LONGEST:,} characters: write one prompt a line")
    if file.suffix != ".jsonl":
        return [Prompt(line) for _, line in lines]
    return [_parse(file, f"{path} line {number}", line) for number, line in lines]


def is_text(text: str) -> bool:
    """Return whether a text can be a prompt: without NUL, and writable as UTF-8."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def exists(path: str) -> bool:
    """Return whether there is a prompt file or set; False also for a name that no file can have."""
    return os.path.isfile(_file(path))


def _file(path: str, held_out: bool = False) -> Path:
    if path == "scenes":
        return SCENES / ("heldout.txt" if held_out else "train.txt")
    return SETS.get(path) or Path(expand_home(path))


def _parse(file: Path, place: str, line: str) -> Prompt:
    """Read a line of a .jsonl file; `place` names it in errors."""
    row = _object(place, line)
    text = row.pop("prompt")
    if not isinstance(text, str) or not text.strip() or not is_text(text):
        raise UserError(f'{place}: "prompt" must be a text that is not empty')
    if "image" in row and "images" in row:
        raise UserError(f'{place} has both "image" and "images": give one of them')
    if "image" in row:
        row["image"] = _find_picture(file, place, row["image"])
    if "images" in row:
        if not isinstance(row["images"], list):
            raise UserError(f'{place}: "images" must be a list of files; for one picture write "image"')
        row["images"] = [_find_picture(file, place, name) for name in row["images"]]
    return Prompt(text, row)


def _object(place: str, line: str) -> dict[str, Any]:
    """Return the JSON object of a line, which has a "prompt"; all of it can be written as JSON in UTF-8 again."""
    try:
        row = json.loads(line, object_pairs_hook=_once, parse_constant=_refuse)
        if not _is_flat(row):
            raise UserError(f"{place} has more than {DEEPEST} levels: write fewer")
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except _KeyError as error:
        raise UserError(f"{place} has the key {error} twice: leave out one") from error
    except UserError:
        raise
    except UnicodeEncodeError as error:  # half of a pair of \\ud83d\\ude00
        raise UserError(f"{place} holds half a character ({error.object[error.start]!a}): write it whole") from error
    except (ValueError, RecursionError) as error:  # broken JSON, NaN, a number of thousands of digits, deep nesting
        raise UserError(f'{place} is not a JSON object with a "prompt": {shown(line, 60)}') from error
    if not isinstance(row, dict) or "prompt" not in row:
        raise UserError(f'{place} is not a JSON object with a "prompt": {shown(line, 60)}')
    return row


class _KeyError(Exception):
    """Say which key stands twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise _KeyError(shown(next(name for name in names if names.count(name) > 1)))
    return row


def _is_flat(value: Any, levels: int = DEEPEST) -> bool:
    """Return whether a JSON value has at most so many levels."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_flat(part, levels - 1) for part in inner)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _find_picture(file: Path, place: str, name: object) -> str:
    """Return the path of a picture that a line names."""
    picture = file.parent / expand_home(name) if isinstance(name, str) else None
    if picture is None or not os.path.isfile(picture):
        raise UserError(f"{place}: no picture {shown(name)}: write the path of a file, from {file.parent} or absolute")
    return str(picture)


def for_each(prompts: Sequence[Prompt], pictures: int) -> tuple[list[str], list[dict[str, Any]]]:
    """Repeat texts and metadata for the pictures of each prompt, in the order of images [P, S, ...] flattened."""
    rows = [prompt for prompt in prompts for _ in range(pictures)]
    return [prompt.text for prompt in rows], [prompt.metadata for prompt in rows]


def prompt_hash(prompts: Sequence[Prompt]) -> str:
    """Hash texts and metadata in their order: two evaluations with the same hash used the same prompts."""
    rows = json.dumps([(prompt.text, prompt.metadata) for prompt in prompts], sort_keys=True)
    return hashlib.sha256(rows.encode()).hexdigest()
