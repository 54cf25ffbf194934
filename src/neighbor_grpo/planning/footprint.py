"""FLOPs and bytes of a model's work, counted while it runs on the meta device.

Bytes are those of tensors, as torch.cuda.max_memory_allocated counts them.  The CUDA context, workspaces inside libraries and
fragmentation come on top.
"""

import weakref
from collections.abc import Hashable, Iterable
from functools import cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
BLOCK = 512  # bytes that CUDA's allocator rounds up to
# torch's counter knows a GPU's attention but not the CPU's
COUNTS = flop_registry | {
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[aten._scaled_dot_product_flash_attention_backward],
}


class Followed(TorchDispatchMode):
    """Count what happens on the meta device inside this context: `flops`, bytes `held` beyond those before it, their `peak`.

    A storage counts until its last tensor is gone, so views and work in place count nothing.  block: what the allocator
    rounds up to.
    """

    def __init__(self, block: int = BLOCK) -> None:
        super().__init__()
        self.block, self.flops, self.held, self.peak = block, 0, 0, 0
        self._known: dict[int, weakref.finalize] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not _makes(func):
            return func(*args, **kwargs)
        out, flops, workspace = _computed(func, args, kwargs)
        self.flops += flops
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._add(tensor.untyped_storage())
        self.peak = max(self.peak, self.held + workspace)
        return out

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        for known in self._known.values():
            known.detach()
        self._known.clear()

    def _add(self, storage: torch.UntypedStorage) -> None:
        size = -(-storage.nbytes() // self.block) * self.block
        self._known[storage._cdata] = weakref.finalize(storage, self._remove, storage._cdata, size)
        self.held += size

    def _remove(self, storage: int, size: int) -> None:
        del self._known[storage]
        self.held -= size


@cache
def _makes(func) -> bool:
    """Return whether an operation returns new tensors, not views or what it was given."""
    return func is not aten._unsafe_view.default and not any(value.alias_info for value in func._schema.returns)


# Results of operations by the shapes of their arguments: blocks repeat, and finding out is slow.
_results: dict[tuple, tuple] = {}


def _computed(func, args: tuple, kwargs: dict) -> tuple:
    """Return the result of an operation, its FLOPs, and the bytes of its workspace."""
    key = func, _shape(args), _shape(tuple(kwargs.items()))
    if key in _results:
        kind, made, flops, workspace = _results[key]
        out = [torch.empty_strided(*x[:2], dtype=x[2], device="meta") if isinstance(x, tuple) else x for x in made]
        return out[0] if kind is Tensor else kind(out), flops, workspace
    out = func(*args, **kwargs)
    made = out if isinstance(out, tuple | list) else [out]
    devices = {x.device.type for x in made if isinstance(x, Tensor)}
    if devices != {"meta"}:  # values
        return out, 0, 0
    count = COUNTS.get(func._overloadpacket)
    flops = count(*args, **kwargs, out_val=out) if count else 0
    # a convolution wants its input and weight once more, in the order of its kernel
    workspace = args[0].nbytes + args[1].nbytes if func is aten.convolution.default else 0
    shapes = [(x.shape, x.stride(), x.dtype) if isinstance(x, Tensor) else x for x in made]
    _results[key] = type(out) if made is out else Tensor, shapes, flops, workspace
    return out, flops, workspace


def _shape(value) -> Hashable:
    if isinstance(value, Tensor):
        if not value.is_meta and value.ndim:
            return object()  # its values may matter, so it equals nothing else
        return value.device, value.dtype, value.shape, value.stride()
    return tuple(map(_shape, value)) if isinstance(value, tuple | list) else (type(value), value)


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors; a shared storage counts once."""
    return sum({(storage := tensor.untyped_storage())._cdata: storage.nbytes() for tensor in tensors}.values())
