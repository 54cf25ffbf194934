"""Rewards: what a picture is worth.  A function of pictures, their prompts and the prompts' metadata (see score.Reward)."""

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
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
from neighbor_grpo.rewards.ocr import Ocr
from neighbor_grpo.rewards.preference import WinRate
from neighbor_grpo.rewards.score import Reward
from neighbor_grpo.scenes.verify import scenes, scenes_sparse, scenes_strict

REWARDS: dict[str, Reward] = {  # functions, and scorers with their default settings
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
WIN_RATE = "win_rate:"  # before the name of a reward: the share of its group that a picture beats


def load_reward(name: str, scorers: Mapping[str, Mapping[str, Any]] | None = None) -> Reward:
    """A reward by its name in REWARDS, the function `f` of a file as "path/to/file.py:f", or "win_rate:" and one of these.

    scorers holds the settings of those that have any, by name; any name with a `url` there is scored by that server.
    Weights are read and servers asked here, so that what is missing shows before anything is computed.
    """
    if name.startswith(WIN_RATE):
        return WinRate(load_reward(name.removeprefix(WIN_RATE), scorers))
    settings = (scorers or {}).get(name, {})
    if "url" in settings and not isinstance(REWARDS.get(name), UnifiedReward):
        reward: Reward = _with_settings(name, Remote(), settings)
    else:
        reward = REWARDS[name] if name in REWARDS else _from_file(name)
        if settings:
            reward = _with_settings(name, reward, settings)
    if hasattr(reward, "load"):
        reward.load()
    return reward


def check_scorers(scorers: Mapping[str, Mapping[str, Any]], names: Iterable[str]) -> None:
    """Raise UserError for settings of a scorer that is neither used nor known: a misspelt name would leave the defaults."""
    used = {name.removeprefix(WIN_RATE) for name in names}
    for name in scorers:
        if name not in used and name not in REWARDS:
            near = get_close_matches(name, [*used, *REWARDS], n=1, cutoff=0.5)
            raise UserError(f"scorers.{name}: no such reward is used" + (f": did you mean {near[0]}?" if near else ""))


def _with_settings(name: str, reward: Reward, settings: Mapping[str, Any]) -> Reward:
    if not is_dataclass(reward):
        raise UserError(f"reward {name!r} has no settings: remove scorers.{name}")
    try:
        return type(reward)(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        known = ", ".join(field.name for field in fields(reward))
        raise UserError(f"scorers.{name}.{'.'.join(map(str, first['loc']))}: {first['msg']}; settings are {known}") from error


def _from_file(name: str) -> Reward:
    path, colon, function = name.rpartition(":")
    if not colon or not path.endswith(".py"):
        raise UserError(f"no reward {name!r}: there are {', '.join(REWARDS)}, or your own as path/to/file.py:function")
    if not Path(path).is_file():
        raise UserError(f"reward {name!r}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file does wrong while it loads
        raise UserError(f"reward file {path} does not load: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, function, None)):
        raise UserError(f"reward {name!r}: {path} defines no function {function}")
    return getattr(module, function)
