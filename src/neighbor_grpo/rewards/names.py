"""The names of the rewards and metrics, known without loading a library.

They are those of `rewards.registry.REWARDS` and `evaluate.metrics.METRICS`, in the same order.
"""

import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib.machinery import PathFinder
from importlib.util import find_spec
from typing import Any

from neighbor_grpo.errors import UserError

REWARDS = (
    "scenes",
    "scenes_strict",
    "scenes_sparse",
    "words_exact",
    "jpeg_compressibility",
    "jpeg_incompressibility",
    "hpsv2.1",
    "pickscore",
    "imagereward",
    "clip",
    "aesthetic",
    "unified_reward",
    "ocr",
    "geneval",
)
METRICS = (
    "diversity",
    "jpeg_size",
    "scenes_distance",
    "words_distance",
    "grid_artefacts",
    "saturation",
    "sharpness",
    "motion",
)
WIN_RATE = "win_rate:"  # before the name of a reward: the share of its group that a picture beats


def check_rewards(names: Iterable[str], scorers: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UserError for a name that is not a reward: one of REWARDS, a scorer with a `url`, or a function of the user."""
    for name in names:
        _check(name.removeprefix(WIN_RATE), scorers, REWARDS, "reward")


def check_measures(names: Iterable[str], scorers: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UserError for a name that is neither a metric nor a reward."""
    for name in names:
        _check(name.removeprefix(WIN_RATE), scorers, (*METRICS, *REWARDS), "metric or reward")


def check_scorers(settings: Iterable[str], names: Iterable[str]) -> None:
    """Check that settings belong to one of the rewards `names`, or to a known one.  Raises UserError otherwise.

    Settings under a misspelt name would have no effect.
    """
    known = [*(name.removeprefix(WIN_RATE) for name in names), *REWARDS]
    for name in settings:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            remedy = f"did you mean {near[0]}?" if near else "remove it, or use that reward"
            raise UserError(f"scorers.{name}: unknown reward: {remedy}")


def _check(name: str, scorers: Mapping[str, Mapping[str, Any]], known: tuple[str, ...], kind: str) -> None:
    if name in known or "url" in scorers.get(name, {}):
        return
    place, _, attribute = name.rpartition(":")
    if place.endswith(".py"):
        if not os.path.isfile(os.path.expanduser(place)):
            raise UserError(f"reward {name!r}: no such file {place}: correct the path")
    elif attribute.isidentifier() and all(part.isidentifier() for part in place.split(".")):
        if not _is_module(place):
            remedy = "install it or add its folder to PYTHONPATH, or give a file as path/to/file.py:function"
            raise UserError(f"reward {name!r}: no module {place}: {remedy}")
    else:
        own = "your own as path/to/file.py:function or package.module:function"
        raise UserError(f"unknown {kind} {name!r}: {_hint(name, known)}, or give {own}")


def _is_module(name: str) -> bool:
    """Return whether a module can be imported.  Nothing is imported: `find_spec` alone would import the packages above it."""
    first, *rest = name.split(".")
    spec = find_spec(first)
    for part in rest:
        first += f".{part}"
        spec = PathFinder.find_spec(first, spec.submodule_search_locations) if spec else None
    return spec is not None


def _hint(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]}" if near else f"choose among {', '.join(names)}"
