"""What ranks share and divide: the groups of an iteration, gradients, and tensors divided by FSDP2.

Only training sees divided tensors.  A checkpoint or an export holds full ones, whatever the number of ranks.
"""

import os
from collections.abc import Callable, Sequence
from itertools import accumulate, groupby
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list, recursively_apply
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from neighbor_grpo.errors import UserError

T = TypeVar("T")
CHUNK = 2**28  # bytes of gradients that go at once


def accelerator_on(device: torch.device) -> Accelerator:
    """Return accelerate's record of this process and the others.

    accelerate keeps the device of the first one made in a process, whatever is asked for later.  Raises UserError then.
    """
    try:
        accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
    except ValueError:
        accelerator = None
    if accelerator is None or accelerator.device.type != device.type:
        raise UserError(f"this process has trained on another device already: start a new process for device={device.type}")
    return accelerator


def slots_of_rank(prompts: int, accelerator: Accelerator) -> range:
    """Return this rank's groups of an iteration.  Raises UserError on every rank if the ranks cannot work together."""
    processes, rank = accelerator.num_processes, accelerator.process_index
    if prompts % processes:
        raise UserError(
            f"prompts.per_iteration ({prompts}) must be a multiple of the {processes} processes: a group is never divided"
        )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise UserError(
            "DeepSpeed takes its optimizer step inside the backward, without the checks made here: use FSDP2 instead"
        )
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not accelerator.is_fsdp2:
        raise UserError("FSDP needs GPUs and fsdp_version: 2 in accelerate's configuration")
    groups = prompts // processes
    return range(rank * groups, (rank + 1) * groups)


def by_main(accelerator: Accelerator, decide: Callable[[], T]) -> T:
    """Return what the main rank decides, on every rank; its UserError is raised on all."""
    answer: list[T | UserError | None] = [None]
    if accelerator.is_main_process:
        try:
            answer = [decide()]
        except UserError as error:
            answer = [error]
    found: Any = broadcast_object_list(answer)[0]
    if isinstance(found, UserError):
        raise found
    return found


# -------------------------------------------------------------------- one synchronisation


@torch.no_grad()
def mean_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over ranks.  All have one type; as many travel at once as fit CHUNK bytes."""
    ends = accumulate(tensor.nbytes for tensor in tensors)
    for _, ended in groupby(zip(ends, tensors, strict=True), key=lambda pair: pair[0] // CHUNK):
        chunk = [tensor for _, tensor in ended]
        flat = torch.cat([tensor.flatten() for tensor in chunk])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for tensor, mean in zip(chunk, flat.split([tensor.numel() for tensor in chunk]), strict=True):
            tensor.copy_(mean.view_as(tensor))


# -------------------------------------------------------------------- divided tensors


def whole(tensor: Tensor) -> Tensor:
    """Return the full tensor.  If it is divided, every rank must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divided(tensor: Tensor, like: Tensor) -> Tensor:
    """Divide a tensor, full on every rank, over devices as `like` is divided; a scalar stays full."""
    if isinstance(like, DTensor) and tensor.shape == like.shape:
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return tensor.to(like.device) if tensor.shape == like.shape else tensor.clone()


def on_main(state: dict, main: bool) -> dict:
    """Return nested state with full tensors, divided ones gathered on the main rank's CPU.  Every rank must call this."""

    def gathered(tensor: Tensor) -> Tensor | None:
        if not isinstance(tensor, DTensor):
            return tensor.detach()
        tensor = whole(tensor.detach())
        return tensor.cpu() if main else None

    return recursively_apply(gathered, state)


def reshard(transformer: nn.Module) -> None:
    """Drop the full weights that FSDP2 has kept since the last forward; it does not see that their parts were written to."""
    for module in transformer.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
