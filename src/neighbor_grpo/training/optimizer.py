"""The optimizers that settings can name."""

from collections.abc import Iterable

import torch
from torch import nn

from neighbor_grpo.errors import UserError


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
