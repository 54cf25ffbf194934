"""Votes as a reward: preference pairs (prompt, chosen, rejected) as preference training reads them."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from neighbor_grpo.arena.votes import Vote
from neighbor_grpo.arena.win_rates import winner
from neighbor_grpo.files import atomic

FILE = "pairs.jsonl"


@dataclass(frozen=True)
class Preference:
    """Hold which of two pictures of a prompt most raters prefer."""

    prompt: int
    seed: int
    chosen: str  # the model
    rejected: str
    votes_for: int
    votes_against: int
    undecided: int  # ties and "both are bad"


def preferences(votes: Sequence[Vote]) -> tuple[list[Preference], int]:
    """Return the preferences by majority in votes on one question, and how many pairs of pictures are left out.

    Ties and "both are bad" prefer nothing; a pair of pictures with equally many votes for both, or without any, is left out.
    """
    shown: dict[tuple[int, int, tuple[str, ...]], list[str | None]] = {}
    for vote in votes:
        shown.setdefault((vote.prompt, vote.seed, tuple(sorted((vote.left, vote.right)))), []).append(winner(vote))
    found = []
    for (prompt, seed, models), given in sorted(shown.items()):
        rejected, chosen = sorted(models, key=given.count)
        pro, contra = given.count(chosen), given.count(rejected)
        if pro > contra:
            found.append(Preference(prompt, seed, chosen, rejected, pro, contra, given.count(None)))
    return found, len(shown) - len(found)


def write(
    out: Path,
    found: Sequence[Preference],
    files: Mapping[tuple[str, int, int], Path],
    prompts: Sequence[str],
    categories: Sequence[str | None],
    question: str,
) -> Path:
    """Write pairs.jsonl and copies of its pictures into the directory `out` and return the file.

    files: of each model, prompt and picture.  Paths in the file are relative to it, so that the directory can be moved.
    """
    with atomic.directory(out, "preference pairs") as aside:
        (aside / "pictures").mkdir()
        models = sorted({model for model, _, _ in files})
        lines = []
        for one in found:
            row = {
                "prompt": prompts[one.prompt],
                "chosen": _copy(aside, files, one, one.chosen, models),
                "rejected": _copy(aside, files, one, one.rejected, models),
                "chosen_model": one.chosen,
                "rejected_model": one.rejected,
                "votes_for": one.votes_for,
                "votes_against": one.votes_against,
                "undecided": one.undecided,
                "question": question,
                "category": categories[one.prompt],
            }
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        atomic.write(aside / FILE, "".join(lines))
    return out / FILE


def _copy(folder: Path, files: Mapping[tuple[str, int, int], Path], one: Preference, model: str, models: Sequence[str]) -> str:
    """Copy a picture, unless it is there, and return its path in the folder."""
    source = files[model, one.prompt, one.seed]
    name = f"pictures/{one.prompt:05d}-{one.seed}-{models.index(model)}{source.suffix.lower()}"
    if not (folder / name).exists():
        shutil.copyfile(source, folder / name)
    return name
