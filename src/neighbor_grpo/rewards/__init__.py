"""Rewards: what a picture is worth.  A function of pictures, their prompts and the prompts' metadata."""

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from neighbor_grpo.errors import UserError
from neighbor_grpo.rewards.jpeg import jpeg_compressibility, jpeg_incompressibility
from neighbor_grpo.scenes.verify import scenes, scenes_sparse, scenes_strict


class Reward(Protocol):
    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor | Sequence[float]:
        """images [N, 3, H, W] in [0, 1], prompts and metadata of length N -> N floats, higher is better."""


REWARDS: dict[str, Reward] = {
    "scenes": scenes,
    "scenes_strict": scenes_strict,
    "scenes_sparse": scenes_sparse,
    "jpeg_compressibility": jpeg_compressibility,
    "jpeg_incompressibility": jpeg_incompressibility,
}


class RewardError(UserError):
    """A reward raised, or gave something that is not one finite number for each picture."""


def load_reward(name: str) -> Reward:
    """A reward by its name in REWARDS, or the function `f` of a file as "path/to/file.py:f"."""
    if name in REWARDS:
        return REWARDS[name]
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


def score(name: str, reward: Reward, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
    """Rewards [N], float64 on the CPU.  Raises RewardError, naming reward and prompt, rather than invent a value."""
    try:
        values = torch.as_tensor(reward(images, prompts, metadata), dtype=torch.float64).cpu()
    except Exception as error:  # a user's function: anything may come, none of it may pass for a score
        raise RewardError(
            f"reward {name} raised {type(error).__name__}: {error} (prompts from {prompts[0]!r} on)"
        ) from error
    if values.shape != (len(prompts),):
        raise RewardError(
            f"reward {name} gave values of shape {tuple(values.shape)} for {len(prompts)} pictures: "
            f"return {len(prompts)} numbers (prompts from {prompts[0]!r} on)"
        )
    for value, prompt in zip(values.tolist(), prompts, strict=True):
        if not math.isfinite(value):
            raise RewardError(f"reward {name} is {value} for the prompt {prompt!r}")
    return values
