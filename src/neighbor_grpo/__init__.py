"""Neighbor GRPO: align flow-matching image and video models with rewards.

    from neighbor_grpo import Trainer, load_config
    Trainer(load_config(presets=["demo"])).run()

The public names are loaded at their first use, so that importing the package is instant.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neighbor_grpo.config import Config, load_config
    from neighbor_grpo.methods import METHODS
    from neighbor_grpo.models.registry import MODELS, load_model
    from neighbor_grpo.rewards.registry import REWARDS
    from neighbor_grpo.training.trainer import Trainer

__all__ = ["METHODS", "MODELS", "REWARDS", "Config", "Trainer", "__version__", "load_config", "load_model"]
__version__ = version("neighbor-grpo")

_PLACES = {
    "Config": "neighbor_grpo.config",
    "load_config": "neighbor_grpo.config",
    "METHODS": "neighbor_grpo.methods",
    "MODELS": "neighbor_grpo.models.registry",
    "load_model": "neighbor_grpo.models.registry",
    "REWARDS": "neighbor_grpo.rewards.registry",
    "Trainer": "neighbor_grpo.training.trainer",
}


def __getattr__(name: str) -> Any:
    """Load a public name at its first use."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    """List the public names beside what the module holds already."""
    return sorted({*globals(), *__all__})
