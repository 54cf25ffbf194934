"""From rows to gradients: micro-batches, one normalisation over all ranks, one synchronisation."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from neighbor_grpo.methods.policy import with_gradient
from neighbor_grpo.methods.protocol import Method
from neighbor_grpo.methods.rows import Rows
from neighbor_grpo.models.policy import ModelPolicy
from neighbor_grpo.training.ranks import mean_over_ranks

LARGEST = ("max/", "first/")  # prefixes of figures that are maxima; the others are means


@dataclass(frozen=True)
class Step:
    """Hold what an optimizer step says and costs."""

    figures: Mapping[str, float]  # of all ranks
    trained: int  # rows of this rank's forwards with a gradient
    frozen: int  # rows of its forwards without one, by a reference or a lagging copy


def accumulate(
    method: Method,
    policy_of: Callable[[Rows], ModelPolicy],
    transformer: nn.Module,
    rows: Rows,
    batch: int,
    weights: Sequence[nn.Parameter],
    accelerator: Accelerator,
) -> Step:
    """Give the weights the gradient of the mean loss over the rows of all ranks, which have equally many."""
    micro_batches = rows.split(batch)
    figures: list[dict[str, Tensor]] = []
    trained = frozen = 0
    for n, micro_batch in enumerate(micro_batches):
        last = n == len(micro_batches) - 1
        with nullcontext() if last else accelerator.no_sync(transformer):
            part = micro_batch.to(accelerator.device)  # a rollout may have been kept on the CPU
            policy = policy_of(part)
            loss, own = method.loss(policy, part)
            (with_gradient(loss).sum() / len(rows)).backward()
        figures.append({name: value.detach().float() for name, value in own.items()} | {"loss": loss.detach().mean()})
        trained, frozen = trained + policy.trained, frozen + policy.frozen
    for weight in weights:  # one that the loss does not reach
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    if accelerator.num_processes > 1 and not accelerator.is_fsdp2:  # FSDP2 has averaged in the last backward
        mean_over_ranks([weight.grad for weight in weights if weight.grad is not None])
    shares = torch.tensor([len(micro_batch) / len(rows) for micro_batch in micro_batches], device=accelerator.device)
    here = {name: _reduced(name, [figure[name] for figure in figures], shares) for name in figures[0]}
    ranks = accelerator.gather(torch.stack(list(here.values()))[None])
    everywhere = torch.stack([_reduced(name, column) for name, column in zip(here, ranks.unbind(1), strict=True)])
    return Step(dict(zip(here, everywhere.tolist(), strict=True)), trained, frozen)  # one synchronisation of the device


def _reduced(name: str, values: Sequence[Tensor] | Tensor, shares: Tensor | None = None) -> Tensor:
    """Return the largest value or the weighted mean, as the name's prefix says."""
    stacked = values if isinstance(values, Tensor) else torch.stack(list(values))
    if name.startswith(LARGEST):
        return stacked.max()
    return stacked.mean() if shares is None else (stacked * shares).sum()


def iteration_figures(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Reduce the figures of an iteration's optimizer steps by their prefixes, which are dropped.

    "max/NAME" is the largest of all steps, "first/NAME" that of the first one, any other the mean.

    >>> iteration_figures([{"max/a": 1.0, "first/b": 2.0, "c": 3.0}, {"max/a": 4.0, "first/b": 5.0, "c": 6.0}])
    {'a': 4.0, 'b': 2.0, 'c': 4.5}
    """
    return {
        name.removeprefix("max/").removeprefix("first/"): _of_iteration(name, [step[name] for step in steps])
        for name in steps[0]
    }


def _of_iteration(name: str, values: Sequence[float]) -> float:
    if name.startswith("first/"):
        return values[0]
    return max(values) if name.startswith("max/") else sum(values) / len(values)
