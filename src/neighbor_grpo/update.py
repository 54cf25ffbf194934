"""From decisions to gradients: micro-batches, one normalisation over all ranks, one synchronisation."""

from contextlib import nullcontext

import torch
from accelerate import Accelerator

from neighbor_grpo.methods import Method
from neighbor_grpo.models import FlowModel, take
from neighbor_grpo.models.lora import lora_off
from neighbor_grpo.tree import Decisions


def accumulate(
    method: Method, model: FlowModel, cond, decisions: Decisions, total_rows: int, batch: int, accelerator: Accelerator
) -> dict[str, torch.Tensor]:
    """Add the gradient of the mean loss over `total_rows`, this rank's and the others'; return health figures.

    Accelerate averages gradients over ranks, so each rank's sum is divided by its share of the total.  Only the last
    backward synchronises.  Figures: worst of the micro-batches for log_ratio, row-weighted means for the rest.
    """
    pieces = decisions.split(batch)
    share = total_rows / accelerator.num_processes
    figures: dict[str, torch.Tensor] = {}
    for n, rows in enumerate(pieces):
        last = n == len(pieces) - 1
        with nullcontext() if last else accelerator.no_sync(model.transformer):
            here = take(cond, rows.prompt)
            v_ref = None
            if method.kl:
                with torch.no_grad(), lora_off(accelerator.unwrap_model(model.transformer)):
                    v_ref = model.velocity(rows.x, rows.t, here)
            loss, stats = method.loss(model.velocity(rows.x, rows.t, here), rows, v_ref)
            accelerator.backward(loss.sum() / share)
        stats["loss"] = loss.detach().mean()
        for name, value in stats.items():
            value = value.detach()
            if name == "log_ratio":
                figures[name] = torch.maximum(figures[name], value) if name in figures else value
            else:
                figures[name] = figures.get(name, 0) + value * len(rows) / len(decisions)
    return figures
