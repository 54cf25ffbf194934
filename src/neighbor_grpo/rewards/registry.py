"""Rewards by name, and how they are loaded."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from inspect import signature
from typing import Any

from pydantic import ValidationError

from neighbor_grpo.errors import UserError
from neighbor_grpo.rewards.geneval.scorer import Geneval
from neighbor_grpo.rewards.http.client import Remote
from neighbor_grpo.rewards.http.vlm import UnifiedReward
from neighbor_grpo.rewards.jpeg import jpeg_compressibility, jpeg_incompressibility
from neighbor_grpo.rewards.learned.clip import Aesthetic, ClipScore, HPSv21, PickScore
from neighbor_grpo.rewards.learned.imagereward import ImageReward
from neighbor_grpo.rewards.names import WIN_RATE, check_rewards
from neighbor_grpo.rewards.ocr import Ocr
from neighbor_grpo.rewards.preference import WinRate
from neighbor_grpo.rewards.scorer import Loadable, Reward, Scorer, make_scorer
from neighbor_grpo.rewards.user_files import load_file, load_module, users_code
from neighbor_grpo.worlds.scenes.verify import scenes, scenes_sparse, scenes_strict

REWARDS: dict[str, Reward] = {  # functions, and instances with their default settings
    "scenes": scenes,
    "scenes_strict": scenes_strict,
    "scenes_sparse": scenes_sparse,
    "words_exact": Ocr(confidence=0.0, detect=False, exact=True),
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

    name: a key of REWARDS, "path/to/file.py:function" or "package.module:function" (or a class there), or "win_rate:" and one
    of these.  With the setting `url`, any name is scored by the server there.  Weights are read and servers asked now, before a
    run computes anything.  Raises UserError if the name or a setting is unknown, or something is missing.
    """
    if name.startswith(WIN_RATE):
        return make_scorer(name, WinRate(load_reward(name.removeprefix(WIN_RATE), settings)))
    own = (settings or {}).get(name, {})
    if name in REWARDS or "url" in own:
        return _loaded(name, _bundled(name, own))
    reward = _users(name)
    with users_code(f"reward {name!r} cannot be made", "correct its class"):
        return _loaded(name, _configured(name, reward, own))


def _loaded(name: str, reward: Reward) -> Scorer:
    if isinstance(reward, Loadable):
        reward.load()
    return make_scorer(name, reward)


def _bundled(name: str, settings: Mapping[str, Any]) -> Reward:
    if "url" in settings and not isinstance(REWARDS.get(name), UnifiedReward):
        return _from_settings(name, Remote, settings)
    return _configured(name, REWARDS[name], settings)


def _configured(name: str, reward: Reward | type, settings: Mapping[str, Any]) -> Reward:
    """Return a reward with these settings, in the place of those that it has."""
    if isinstance(reward, type):
        made = _from_settings(name, reward, settings)
    elif settings:
        kept: dict[str, Any] = (
            {each.name: getattr(reward, each.name) for each in fields(reward) if each.init} if is_dataclass(reward) else {}
        )
        made = _from_settings(name, type(reward), settings, kept)
    else:
        made = reward
    _check_arguments(name, made)
    return made


def _from_settings(name: str, kind: type, settings: Mapping[str, Any], kept: Mapping[str, Any] | None = None) -> Reward:
    """Make a reward of the class `kind`, a dataclass whose fields are its settings; `kept`: values of the other fields."""
    known = [field.name for field in fields(kind) if field.init] if is_dataclass(kind) else []
    for key in settings:
        if key not in known:
            remedy = f"settings are {', '.join(known)}" if known else "this reward has no settings, remove it"
            raise UserError(f"scorers.{name}.{key}: unknown setting: {remedy}")
    try:
        reward = kind(**{**(kept or {}), **settings})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("scorers", name, *first["loc"])))
        raise UserError(f"{place}: {first['msg']}; settings are {', '.join(known)}") from error
    except TypeError as error:  # a class of the user's whose fields have no defaults
        raise UserError(f"reward {name!r}: {error}: set it as scorers: {{{name}: {{key: value}}}}") from error
    if not callable(reward):
        raise UserError(f"reward {name!r}: {kind.__name__} needs a method __call__(self, images, prompts, metadata)")
    return reward


def _check_arguments(name: str, reward: Reward) -> None:
    """Check that a reward can be called with three arguments.  Raises UserError."""
    try:
        signature(reward).bind(None, None, None)
    except TypeError as error:
        raise UserError(f"reward {name!r} {error}: it gets (images, prompts, metadata)") from error
    except ValueError:  # a function without a signature, such as one in C
        return


def _users(name: str) -> Reward | type:
    """Import a function, a class or an instance from a file or a module of the user's."""
    check_rewards([name], {})
    place, _, attribute = name.rpartition(":")
    reward = getattr(load_file(place) if place.endswith(".py") else load_module(place), attribute, None)
    if not callable(reward):
        raise UserError(f"reward {name!r}: {place} has no function {attribute}: correct the name")
    return reward
