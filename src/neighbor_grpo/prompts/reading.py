"""Prompts: read from files, hashed, repeated for each picture."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from neighbor_grpo.errors import UserError
from neighbor_grpo.scenes.world import PROMPTS as SCENES

SETS = {file.stem: file for file in sorted((Path(__file__).parent / "sets").iterdir())}


@dataclass(frozen=True)
class Prompt:
    text: str
    metadata: dict = field(default_factory=dict)

    @property
    def image(self) -> Path | None:
        """The picture that a video starts from."""
        return Path(self.metadata["image"]) if "image" in self.metadata else None


def read_prompts(path: str, held_out: bool = False) -> list[Prompt]:
    """One prompt a line (.txt), or one JSON object with "prompt" a line (.jsonl; other keys are metadata).

    The key "image" is a picture that a video starts from, a file beside the prompt file or an absolute path.  "scenes" is the
    bundled model's prompt set, the names in SETS are test sets of the field.  Raises UserError naming file and line.
    """
    scenes = SCENES / ("heldout.txt" if held_out else "train.txt")
    file = scenes if path == "scenes" else SETS.get(path, Path(path))
    if not file.is_file():
        raise UserError(f"no prompt file {path!r}: give a .txt or .jsonl file, or one of scenes, {', '.join(SETS)}")
    prompts = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        if file.suffix != ".jsonl":
            prompts.append(Prompt(line.strip()))
            continue
        try:
            row = json.loads(line)
            prompts.append(Prompt(row.pop("prompt"), row))
        except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f'{path} line {number} is not a JSON object with a "prompt": {line.strip()[:60]!r}') from error
        if not isinstance(prompts[-1].text, str) or not prompts[-1].text.strip():
            raise UserError(f'{path} line {number}: "prompt" must be a text that is not empty')
        if "image" in prompts[-1].metadata:
            prompts[-1].metadata["image"] = _picture(file, number, prompts[-1].metadata["image"])
    if not prompts:
        raise UserError(f"prompt file {path!r} is empty: write one prompt a line")
    return prompts


def _picture(file: Path, number: int, name) -> str:
    """Where the picture lies that line `number` names."""
    picture = file.parent / name if isinstance(name, str) else None
    if picture is None or not picture.is_file():
        raise UserError(f'{file} line {number}: no picture {name!r}: "image" is a file, by its path from {file.parent}')
    return str(picture)


def for_each(prompts: Sequence[Prompt], pictures: int) -> tuple[list[str], list[dict]]:
    """Texts and metadata of so many pictures of each prompt, in the order of images [P, S, ...] flattened."""
    rows = [prompt for prompt in prompts for _ in range(pictures)]
    return [prompt.text for prompt in rows], [prompt.metadata for prompt in rows]


def prompt_hash(prompts: Sequence[Prompt]) -> str:
    """Of texts and metadata in their order: two evaluations with the same hash saw the same prompts."""
    rows = json.dumps([(prompt.text, prompt.metadata) for prompt in prompts], sort_keys=True)
    return hashlib.sha256(rows.encode()).hexdigest()
