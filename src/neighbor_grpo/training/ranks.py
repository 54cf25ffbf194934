"""What the ranks hold in common or in parts: groups of an iteration, gradients, and tensors that FSDP2 has divided.

Outside of training there are whole tensors only: a checkpoint or an export is the same file whoever wrote it.
"""

import os
from collections.abc import Sequence
from itertools import accumulate, groupby

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType, recursively_apply
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from neighbor_grpo.errors import UserError

CHUNK = 2**28  # bytes of gradients that go at once


def slots_of_rank(prompts: int, accelerator: Accelerator) -> range:
    """This rank's groups among an iteration's.  Raises UserError, on every rank the same, where ranks cannot work together."""
    processes, rank = accelerator.num_processes, accelerator.process_index
    if prompts % processes:
        raise UserError(
            f"prompts.per_iteration ({prompts}) must be a multiple of the {processes} processes: a group never straddles two"
        )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise UserError("DeepSpeed steps inside of the backward, past the checks here: divide the weights by FSDP2 instead")
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not accelerator.is_fsdp2:
        raise UserError("FSDP needs GPUs, and fsdp_version: 2 in accelerate's configuration")
    groups = prompts // processes
    return range(rank * groups, (rank + 1) * groups)


# -------------------------------------------------------------------- one synchronisation


@torch.no_grad()
def mean_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Put the mean over the ranks in place of each; of one type, and as many at once as fit a chunk."""
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
    """All of it.  Of a divided tensor every rank must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divided(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that is whole on every rank, on the device and in the parts of `like`; a scalar stays whole."""
    if isinstance(like, DTensor) and tensor.shape == like.shape:
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return tensor.to(like.device) if tensor.shape == like.shape else tensor.clone()


def on_main(state: dict, main: bool) -> dict:
    """Nested state with its divided tensors whole, on the main rank's CPU; every rank takes part, one after another tensor."""

    def gathered(tensor: Tensor) -> Tensor | None:
        if not isinstance(tensor, DTensor):
            return tensor.detach()
        tensor = whole(tensor.detach())
        return tensor.cpu() if main else None

    return recursively_apply(gathered, state)


def reshard(transformer: nn.Module) -> None:
    """Drop whole weights that FSDP2 has kept since the last forward: it would not see that the parts were written to."""
    for module in transformer.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
