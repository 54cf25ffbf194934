"""pictures.json: which picture of a folder shows which prompt from which seed, so that a folder explains itself.

{"version": 1, "pictures": [{"prompt": "a cube", "number": 0, "seed": 0, "file": "0000-seed0.png", "category": null}, ...]}
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic

LISTING = "pictures.json"


@dataclass(frozen=True)
class Picture:
    """Hold what a picture shows."""

    prompt: str
    number: int  # of the prompt, from 0: two prompts may have the same text
    seed: int
    file: str  # beside pictures.json, or relative to it
    category: str | None = None  # of the prompt


def category(metadata: Mapping[str, Any]) -> str | None:
    """Return the category that a prompt file gives a prompt: its key "category", or "tag" as in GenEval."""
    found = metadata.get("category", metadata.get("tag"))
    return found if isinstance(found, str) else None


def write_listing(folder: Path, pictures: Iterable[Picture]) -> None:
    """Write pictures.json."""
    rows = {"version": atomic.VERSION, "pictures": [asdict(picture) for picture in pictures]}
    atomic.write(folder / LISTING, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def read_listing(folder: Path) -> list[Picture]:
    """Read pictures.json.  Raises UserError where it is missing or damaged."""
    file = folder / LISTING
    if not file.is_file():
        raise UserError(f"{folder} has no {LISTING}: run `neighbor-grpo sample` or `evaluate` into it again, which writes one")
    found = atomic.read_json(file).get("pictures")
    try:
        pictures = [Picture(**row) for row in found] if isinstance(found, list) else []
    except TypeError as error:
        raise atomic.DamagedError(f"{file} is damaged: {error}") from error
    if wrong := next((row for row in pictures if not _well_formed(row)), None):
        raise atomic.DamagedError(f"{file} is damaged: {wrong}")
    if not pictures:
        raise atomic.DamagedError(f"{file} is damaged: it lists no pictures")
    return pictures


def _well_formed(row: Picture) -> bool:
    texts = isinstance(row.prompt, str) and isinstance(row.file, str) and isinstance(row.category, str | None)
    return texts and all(type(n) is int and n >= 0 for n in (row.number, row.seed))
