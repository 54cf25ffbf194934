"""Prompts: read from files, hashed, repeated for each picture."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neighbor_grpo.errors import UserError
from neighbor_grpo.scenes.world import PROMPTS as SCENES

SETS = {file.stem: file for file in sorted((Path(__file__).parent / "sets").iterdir())}


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
    "scenes" is the prompt set of the bundled model, and the names in SETS are test sets of the field.  Raises UserError that
    names file and line.
    """
    scenes = SCENES / ("heldout.txt" if held_out else "train.txt")
    file = scenes if path == "scenes" else SETS.get(path, Path(path))
    if not file.is_file():
        raise UserError(f"no prompt file {path!r}: give a .txt or .jsonl file, or one of scenes, {', '.join(SETS)}")
    lines = [(n, line.strip()) for n, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1) if line.strip()]
    if not lines:
        raise UserError(f"prompt file {path!r} is empty: write one prompt a line")
    if file.suffix != ".jsonl":
        return [Prompt(line) for _, line in lines]
    return [_parse(file, f"{path} line {number}", line) for number, line in lines]


def _parse(file: Path, place: str, line: str) -> Prompt:
    """Read a line of a .jsonl file; `place` names it in errors."""
    try:
        row = json.loads(line)
        text = row.pop("prompt")
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f'{place} is not a JSON object with a "prompt": {line[:60]!r}') from error
    if not isinstance(text, str) or not text.strip():
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


def _find_picture(file: Path, place: str, name: object) -> str:
    """Return the path of a picture that a line names."""
    picture = file.parent / name if isinstance(name, str) else None
    if picture is None or not picture.is_file():
        raise UserError(f"{place}: no picture {name!r}: write the path of a file, from {file.parent} or absolute")
    return str(picture)


def for_each(prompts: Sequence[Prompt], pictures: int) -> tuple[list[str], list[dict[str, Any]]]:
    """Repeat texts and metadata for the pictures of each prompt, in the order of images [P, S, ...] flattened."""
    rows = [prompt for prompt in prompts for _ in range(pictures)]
    return [prompt.text for prompt in rows], [prompt.metadata for prompt in rows]


def prompt_hash(prompts: Sequence[Prompt]) -> str:
    """Hash texts and metadata in their order: two evaluations with the same hash used the same prompts."""
    rows = json.dumps([(prompt.text, prompt.metadata) for prompt in prompts], sort_keys=True)
    return hashlib.sha256(rows.encode()).hexdigest()
