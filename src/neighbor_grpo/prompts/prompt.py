"""A prompt: its text and what stands beside it; repeated for each picture, and hashed."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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


def is_text(text: str) -> bool:
    """Return whether a text can be a prompt: without NUL, and writable as UTF-8."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def for_each(prompts: Sequence[Prompt], pictures: int) -> tuple[list[str], list[dict[str, Any]]]:
    """Repeat texts and metadata for the pictures of each prompt, in the order of images [P, S, ...] flattened."""
    rows = [prompt for prompt in prompts for _ in range(pictures)]
    return [prompt.text for prompt in rows], [prompt.metadata for prompt in rows]


def prompt_hash(prompts: Sequence[Prompt]) -> str:
    """Hash texts and metadata in their order: two evaluations with the same hash used the same prompts."""
    rows = json.dumps([(prompt.text, prompt.metadata) for prompt in prompts], sort_keys=True)
    return hashlib.sha256(rows.encode()).hexdigest()
