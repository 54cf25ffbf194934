"""What automatic metrics say of a study's pictures: the values of `evaluate`, read from its directory."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from neighbor_grpo.errors import UserError, shown
from neighbor_grpo.files import atomic
from neighbor_grpo.files.ledger import Ledger, short_hash
from neighbor_grpo.files.listing import read_listing
from neighbor_grpo.files.text import expand_home

Measures = dict[str, np.ndarray]  # by the metric's name: [P, S] of P prompts with S pictures each, NaN without a value


def read_evaluations(
    given: Sequence[str], models: Sequence[str], prompts: Sequence[str], seeds: Sequence[int]
) -> list[Measures]:
    """Read MODEL=DIR of every model; seeds: how many pictures each prompt has.  None given: an empty list.

    Raises UserError unless every model has one evaluation of the study's prompts, all with the same metrics.
    """
    if not given:
        return []
    folders: dict[str, Path] = {}
    for entry in given:
        model = next((model for model in models if entry.startswith(f"{model}=")), None)
        if model is None or model in folders:
            raise UserError(f"--evaluation {shown(entry)}: give MODEL=DIR once for each of {', '.join(models)}")
        folders[model] = Path(expand_home(entry.removeprefix(f"{model}=")))
    if missing := [model for model in models if model not in folders]:
        raise UserError(f"--evaluation {missing[0]}=DIR is missing: give one for each of {', '.join(models)}")
    found = [read_measures(folders[model], prompts, seeds) for model in models]
    if other := next((name for one in found for name in sorted(found[0].keys() ^ one.keys())), None):
        raise UserError(f"not all of the evaluations have {other}: evaluate all models with the same --measure")
    return found


def read_measures(folder: Path, prompts: Sequence[str], seeds: Sequence[int]) -> Measures:
    """Read the values of one evaluation.

    A value of all pictures of a prompt counts for each of them.  Metrics that give one value for all prompts together are left
    out, and those that failed too often.  Raises UserError unless the folder holds a finished evaluation of these prompts.
    """
    if not (folder / "result.json").is_file():
        raise UserError(f"{folder} holds no finished evaluation: give the --out directory of `neighbor-grpo evaluate`")
    listed = read_listing(folder)
    texts = {picture.number: picture.prompt for picture in listed}
    pictures = len({picture.seed for picture in listed})
    if wrong := _difference([texts[n] for n in sorted(texts)], prompts, pictures, seeds):
        raise UserError(f"{folder} is not an evaluation of the study's pictures: {wrong}")
    result, ledger = atomic.read_json(folder / "result.json"), Ledger(folder)
    scorers = {name: short_hash(identity) for name, identity in result["settings"]["scorers"].items()}  # metrics have none
    found = {}
    for name in result["intervals"]:  # a value of all prompts together has none
        entries = [ledger.entries.get((name, scorers.get(name, ""), prompt)) for prompt in range(len(prompts))]
        rows = [entry.values if entry else () for entry in entries]
        if damaged := [n for n, row in enumerate(rows) if len(row) not in (1, pictures)]:
            raise UserError(
                f"{folder} has no {name} of prompt {damaged[0]}: evaluate again into it, which measures what is missing"
            )
        found[name] = np.array([row * (pictures // len(row)) for row in rows], dtype=float)
    return found


def _difference(texts: Sequence[str], prompts: Sequence[str], pictures: int, seeds: Sequence[int]) -> str:
    """Say how prompts, or the number of pictures of each, differ from those of the study; nothing where they do not."""
    if len(texts) != len(prompts):
        return f"it has {len(texts)} prompts, the study {len(prompts)}"
    for n, (text, prompt, wanted) in enumerate(zip(texts, prompts, seeds, strict=True)):
        if text != prompt:
            return f"prompt {n} is {shown(text)}, in the study {shown(prompt)}"
        if pictures != wanted:
            return f"it has {pictures} pictures of prompt {n}, the study {wanted}"
    return ""
