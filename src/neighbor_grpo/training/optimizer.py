"""The optimizers that settings can name."""

from collections.abc import Iterable
from math import cos, pi

import torch
from torch import nn

from neighbor_grpo.config import Optimizer
from neighbor_grpo.errors import UserError

DECAYS = {  # share of the run that is done -> share of the rate that is left
    "none": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: (1.0 + cos(pi * done)) / 2,
}


def rate(settings: Optimizer, updates: int, done: float) -> float:
    """Return the learning rate after so many optimizer steps, with this share of the run's iterations done.

    >>> rate(Optimizer(lr=1.0, warmup=3, decay="linear"), 1, 0.25)  # 2/4 of the warm-up, 3/4 of the rate
    0.375
    """
    return settings.lr * min(1.0, (updates + 1) / (settings.warmup + 1)) * DECAYS[settings.decay](done)


def build_optimizer(name: str, weights: Iterable[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Build AdamW ("adamw"), or AdamW with 8-bit moments for weights of at least 4096 numbers ("adamw_8bit").

    Raises UserError if bitsandbytes is missing.
    """
    if name == "adamw":
        return torch.optim.AdamW(weights, lr=lr, weight_decay=weight_decay)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError(f"optimizer.name={name} needs bitsandbytes: pip install 'neighbor-grpo[lean]'") from error
    return AdamW8bit(weights, lr=lr, weight_decay=weight_decay)
