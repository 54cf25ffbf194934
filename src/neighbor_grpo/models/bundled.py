"""The models of the worlds, by the name of their folder."""

import os
from pathlib import Path

from neighbor_grpo.errors import UserError
from neighbor_grpo.models.directory import INDEX

_WORLDS = Path(__file__).parent.parent / "worlds"
BUNDLED = {place.parent.name: place for place in sorted(_WORLDS.glob("*/model"))}
UNMADE = {place.parent.name for place in _WORLDS.glob("*/pretrain.py")} - BUNDLED.keys()  # a recipe, and no weights


def check_made(path: str) -> None:
    """Raise UserError for a model whose recipe comes with the package, but no weights, where it was not made yet."""
    if path in UNMADE and not os.path.isfile(Path(path) / INDEX):
        raise UserError(
            f"no model {path} here, and none comes with neighbor-grpo: neighbor-grpo {path} pretrain --out {path} makes it"
        )
