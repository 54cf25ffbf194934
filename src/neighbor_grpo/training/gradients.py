"""From decisions to gradients: micro-batches, one normalisation over all ranks, one synchronisation."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from neighbor_grpo.methods import Method
from neighbor_grpo.methods.tree import Decisions
from neighbor_grpo.models.lora import lora_off
from neighbor_grpo.models.registry import FlowModel, take
from neighbor_grpo.training.ranks import mean_over_ranks


def accumulate(
    method: Method,
    model: FlowModel,
    cond,
    decisions: Decisions,
    batch: int,
    weights: Sequence[nn.Parameter],
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """Give the weights the gradient of the mean loss over the decisions of all ranks, which have as many each.

    A weight that the loss does not reach gets zero.  FSDP2 averages what is divided in the last backward; whole weights are
    averaged here.  Returned are health figures of all ranks: the worst log_ratio, means over decisions of the rest.
    """
    pieces = decisions.split(batch)
    figures: dict[str, Tensor] = {}
    for n, piece in enumerate(pieces):
        rows = piece.to(accelerator.device)  # a rollout may have been kept on the CPU
        last = n == len(pieces) - 1
        with nullcontext() if last else accelerator.no_sync(model.transformer):
            here = take(cond, rows.prompt)
            v_ref = None
            if method.kl:
                with torch.no_grad(), lora_off(model.transformer):
                    v_ref = model.velocity(rows.x, rows.t, here)
            loss, stats = method.loss(model.velocity(rows.x, rows.t, here), rows, v_ref)
            (loss.sum() / len(decisions)).backward()
        stats["loss"] = loss.detach().mean()
        for name, value in stats.items():
            value = value.detach()
            if name == "log_ratio":
                figures[name] = torch.maximum(figures[name], value) if name in figures else value
            else:
                figures[name] = figures.get(name, 0) + value * len(rows) / len(decisions)
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    if accelerator.num_processes > 1 and not accelerator.is_fsdp2:
        mean_over_ranks([weight.grad for weight in weights])
    return _of_all_ranks(figures, accelerator)


def _of_all_ranks(figures: dict[str, Tensor], accelerator: Accelerator) -> dict[str, Tensor]:
    ranks = accelerator.gather(torch.stack([value.float() for value in figures.values()])[None])
    return {
        name: column.max() if name == "log_ratio" else column.mean()
        for name, column in zip(figures, ranks.unbind(1), strict=True)
    }
