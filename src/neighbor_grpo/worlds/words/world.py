"""The world of words: which words there are, and how prompts ask for them.

A word has three to five letters, consonants and vowels in turn, so that it can be pronounced; all capitals or all small.
"""

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neighbor_grpo.errors import UserError, shown

HEIGHT, WIDTH = 32, 96
BACKGROUND = 0.95
COLOURS = {
    "black": (0.10, 0.10, 0.10),
    "red": (0.85, 0.10, 0.10),
    "green": (0.05, 0.50, 0.15),
    "blue": (0.10, 0.20, 0.85),
}
VOWELS, CONSONANTS = "aeiou", "bcdfghklmnprstvwz"
LETTERS = VOWELS + CONSONANTS
LENGTHS = (3, 4, 5)
PROMPTS = Path(__file__).parent / "prompts"  # train.txt and heldout.txt, written by make_prompts.py


@dataclass(frozen=True)
class Spec:
    """Describe what a prompt requires: a word and its colour."""

    text: str
    colour: str

    @property
    def prompt(self) -> str:
        """Return the prompt, for instance 'the word "KATO" in red'."""
        return f'the word "{self.text}" in {self.colour}'

    @property
    def held_out(self) -> bool:
        """Return whether this word, in capitals and small, is left for evaluation: one in five."""
        return zlib.crc32(self.text.lower().encode()) % 5 == 0


_PROMPT = re.compile(rf'the word "([^"]*)" in ({"|".join(COLOURS)})')
_TEXT = re.compile(rf"[{LETTERS}]{{3,5}}|[{LETTERS.upper()}]{{3,5}}")


def parse(prompt: str) -> Spec:
    """Read a prompt, for instance 'the word "KATO" in red'.  Raises UserError."""
    match = _PROMPT.fullmatch(prompt)
    if not match:
        raise UserError(
            f"not a prompt of words: {shown(prompt, 100)}; write for instance 'the word \"KATO\" in red' "
            f"(colours {', '.join(COLOURS)})"
        )
    if not _TEXT.fullmatch(match[1]):
        raise UserError(
            f"not a word of words: {shown(match[1], 100)}; write three to five of the letters {' '.join(sorted(LETTERS))}, "
            f"all capitals or all small"
        )
    return Spec(match[1], match[2])


def sample_specs(n: int, rng: np.random.Generator, held_out: bool) -> list[Spec]:
    """Draw n prompts, all of held-out words or all of the others; each length as often as the others."""
    specs: list[Spec] = []
    while len(specs) < n:
        text = _sample_text(rng)
        spec = Spec(text.upper() if rng.random() < 0.5 else text, tuple(COLOURS)[rng.integers(len(COLOURS))])
        if spec.held_out == held_out:
            specs.append(spec)
    return specs


def _sample_text(rng: np.random.Generator) -> str:
    length = LENGTHS[rng.integers(len(LENGTHS))]
    kinds = (VOWELS, CONSONANTS) if rng.random() < 0.25 else (CONSONANTS, VOWELS)
    return "".join(kinds[at % 2][int(share * len(kinds[at % 2]))] for at, share in enumerate(rng.random(length)))
