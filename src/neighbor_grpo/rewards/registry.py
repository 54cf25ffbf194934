"""Rewards by name, and how they are loaded."""

import importlib.util
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from neighbor_grpo.errors import UserError
from neighbor_grpo.rewards.geneval.scorer import Geneval
from neighbor_grpo.rewards.http.client import Remote
from neighbor_grpo.rewards.http.vlm import UnifiedReward
from neighbor_grpo.rewards.jpeg import jpeg_compressibility, jpeg_incompressibility
from neighbor_grpo.rewards.learned.clip import Aesthetic, ClipScore, HPSv21, PickScore
from neighbor_grpo.rewards.learned.imagereward import ImageReward
from neighbor_grpo.rewards.names import WIN_RATE
from neighbor_grpo.rewards.ocr import Ocr
from neighbor_grpo.rewards.preference import WinRate
from neighbor_grpo.rewards.scorer import Loadable, Reward, Scorer, make_scorer
from neighbor_grpo.scenes.verify import scenes, scenes_sparse, scenes_strict

REWARDS: dict[str, Reward] = {  # functions, and instances with their default settings
    "scenes": scenes,
    "scenes_strict": scenes_strict,
    "scenes_sparse": scenes_sparse,
    "jpeg_compressibility": jpeg_compressibility,
    "jpeg_incompressibility": jpeg_incompressibility,
    "hpsv2.1": HPSv21(),
    "pickscore": PickScore(),
    "imagereward": ImageReward(),
    "clip": ClipScore(),
    "aesthetic": Aesthetic(),
    "unified_reward": UnifiedReward(),
    "ocr": Ocr(),
    "geneval": Geneval(),
}


def load_reward(name: str, settings: Mapping[str, Mapping[str, Any]] | None = None) -> Scorer:
    """Load a reward by name, with its settings out of {name: {key: value}}.

    name: a key of REWARDS, "path/to/file.py:function" (or a class of that file), or "win_rate:" and one of these.  With the
    setting `url`, any name is scored by the server there.  Weights are read and servers asked now, before a run computes
    anything.  Raises UserError if the name or a setting is unknown, or something is missing.
    """
    if name.startswith(WIN_RATE):
        return make_scorer(name, WinRate(load_reward(name.removeprefix(WIN_RATE), settings)))
    reward = _configured(name, (settings or {}).get(name, {}))
    if isinstance(reward, Loadable):
        reward.load()
    return make_scorer(name, reward)


def _configured(name: str, settings: Mapping[str, Any]) -> Reward:
    """Return the reward of this name with these settings."""
    if "url" in settings and not isinstance(REWARDS.get(name), UnifiedReward):
        return _from_settings(name, Remote, settings)
    reward = REWARDS[name] if name in REWARDS else _from_file(name)
    if isinstance(reward, type):
        return _from_settings(name, reward, settings)
    return _from_settings(name, type(reward), settings) if settings else reward


def _from_settings(name: str, kind: type, settings: Mapping[str, Any]) -> Reward:
    """Make a reward of the class `kind`, a dataclass whose fields are its settings."""
    known = [field.name for field in fields(kind)] if is_dataclass(kind) else []
    for key in settings:
        if key not in known:
            remedy = f"settings are {', '.join(known)}" if known else "this reward has no settings, remove it"
            raise UserError(f"scorers.{name}.{key}: unknown setting: {remedy}")
    try:
        reward = kind(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("scorers", name, *first["loc"])))
        raise UserError(f"{place}: {first['msg']}; settings are {', '.join(known)}") from error
    except TypeError as error:  # a class of the user's whose fields have no defaults
        raise UserError(f"reward {name!r}: {error}: set it as scorers: {{{name}: {{key: value}}}}") from error
    if not callable(reward):
        raise UserError(f"reward {name!r}: {kind.__name__} needs a method __call__(self, images, prompts, metadata)")
    return reward


def _from_file(name: str) -> Reward | type:
    """Import a function, a class or an instance from a user's file."""
    path, colon, attribute = name.rpartition(":")
    if not colon or not path.endswith(".py"):
        raise UserError(f"unknown reward {name!r}: choose {', '.join(REWARDS)}, or your own as path/to/file.py:function")
    if not Path(path).is_file():
        raise UserError(f"reward {name!r}: no such file {path}: correct the path")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec and spec.loader  # a .py file always has a loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's file may raise anything while it loads
        raise UserError(f"reward file {path} does not load ({type(error).__name__}: {error}): correct the file") from error
    reward = vars(module).get(attribute)
    if not callable(reward):
        raise UserError(f"reward {name!r}: {path} has no function {attribute}: correct the name")
    return reward
