"""What running a model takes, found by running it on the meta device: floating-point operations and bytes.

Bytes are those of tensors, as torch.cuda.max_memory_allocated counts them.  The CUDA context, workspaces inside of libraries
and what fragmentation wastes come on top.
"""

import os
import time
import weakref
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
BLOCK = 512  # bytes that CUDA's allocator rounds up to
# of a GPU's attention the counter knows the operations, of the CPU's it does not
COUNTS = flop_registry | {
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[aten._scaled_dot_product_flash_attention_backward],
}
# what autocast runs in the lower precision, and in fp32 on CUDA (ATen/autocast_mode.h): the functions that transformers use
LOWER = {
    "linear",
    "matmul",
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "einsum",
    "conv1d",
    "conv2d",
    "conv3d",
    "scaled_dot_product_attention",
}
FULL = {
    "layer_norm",
    "rms_norm",
    "group_norm",
    "softmax",
    "log_softmax",
    "exp",
    "log",
    "pow",
    "rsqrt",
    "reciprocal",
    "sum",
    "cumsum",
    "prod",
    "norm",
}


class Followed(TorchDispatchMode):
    """Within it, what happens on the meta device: `flops`, bytes that are `held` beyond those before it, their `peak`.

    Storages are followed until the last tensor of each is gone, so that views and work in place count nothing.  block:
    what the allocator rounds up to.
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
                self._see(tensor.untyped_storage())
        self.peak = max(self.peak, self.held + workspace)
        return out

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        for known in self._known.values():
            known.detach()
        self._known.clear()

    def _see(self, storage: torch.UntypedStorage) -> None:
        size = -(-storage.nbytes() // self.block) * self.block
        self._known[storage._cdata] = weakref.finalize(storage, self._gone, storage._cdata, size)
        self.held += size

    def _gone(self, storage: int, size: int) -> None:
        del self._known[storage]
        self.held -= size


@cache
def _makes(func) -> bool:
    """Whether what an operation returns is new, neither a view nor what it was given."""
    return func is not aten._unsafe_view.default and not any(value.alias_info for value in func._schema.returns)


_results: dict[tuple, tuple] = {}  # what an operation makes of tensors of these shapes: blocks repeat, and finding out is slow


def _computed(func, args: tuple, kwargs: dict) -> tuple:
    """What an operation makes, its FLOPs and bytes of its workspace."""
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
            return object()  # its values may matter: like no other
        return value.device, value.dtype, value.shape, value.stride()
    return tuple(map(_shape, value)) if isinstance(value, tuple | list) else (type(value), value)


class Kernels(TorchFunctionMode):
    """Within it, meta tensors are computed as a device of a type does: fused attention and norms, autocast to `lower`, and
    frozen weights of linear layers that are `packed`, "int8" or "fp8".

    `cast`: copies of weights that autocast keeps until the forward ends.
    """

    def __init__(self, device: str, lower: torch.dtype | None = None, packed: str | None = None) -> None:
        super().__init__()
        self.device, self.lower, self.packed, self.cast = device, lower, packed, None

    @contextmanager
    def of(self, module: nn.Module, checkpointing: bool = False) -> Iterator[None]:
        """Enter it, also where gradient checkpointing computes once more."""

        def checkpointed(block, *args):
            return checkpoint(block.__call__, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), self))

        models = [part for part in module.modules() if isinstance(part, ModelMixin)] if checkpointing else []
        hooks = [
            module.register_forward_pre_hook(lambda *_: setattr(self, "cast", {})),
            module.register_forward_hook(lambda *_: setattr(self, "cast", None)),
        ]
        for model in models:
            model.enable_gradient_checkpointing(checkpointed)
        try:
            with self:
                yield
        finally:
            for model in models:
                model.disable_gradient_checkpointing()
            for hook in hooks:
                hook.remove()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.__name__
        if self.lower and name in LOWER:
            args, kwargs = self._casted(args, kwargs, self.lower)
        elif self.lower and name in FULL and self.device == "cuda":
            args, kwargs = self._casted(args, kwargs, torch.float32)
        if func is F.linear and self.packed and isinstance(args[1], nn.Parameter) and not args[1].requires_grad:
            return packed_linear(self.packed, *args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return attention(self.device, *args, **kwargs)
        if func is F.rms_norm and self.device == "cuda":
            return rms_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def _casted(self, args, kwargs, dtype: torch.dtype):
        def cast(x):
            if not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype == dtype:
                return x
            kept = x.is_leaf and x.requires_grad and dtype == self.lower and torch.is_grad_enabled()
            if self.cast is None or not kept:
                return x.to(dtype)
            if id(x) not in self.cast:
                self.cast[id(x)] = x.to(dtype)
            return self.cast[id(x)]

        return [cast(x) for x in args], {key: cast(x) for key, x in kwargs.items()}


def attention(
    device: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """scaled_dot_product_attention by the kernel that torch chooses on the device: none holds L x L scores."""
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    options = {"is_causal": is_causal, "scale": scale}
    if attn_mask is not None:
        attn_mask = attn_mask.to(query.device, query.dtype)
    if device != "cuda":
        return aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, attn_mask=attn_mask, **options)[0]
    if attn_mask is None and query.dtype != torch.float32 and query.shape[-1] <= 256:
        return aten._scaled_dot_product_flash_attention(query, key, value, **options)[0]
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    training = torch.is_grad_enabled() and query.requires_grad
    return aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, training, **options)[0]


def rms_norm(input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """torch's, in one kernel where CUDA has it: of input and weight of one type."""
    if weight is not None and weight.dtype != input.dtype:
        return F.rms_norm(input, normalized_shape, weight, eps)
    return FusedNorm.apply(input, weight, input.shape[: -len(normalized_shape)])


class FusedNorm(torch.autograd.Function):
    """Keeps its input and one number for each norm."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, norms: torch.Size) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(norms, dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight) if ctx.needs_input_grad[1] else None, None


def packed_linear(kind: str, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """By torchao's operations, which autograd sees: what it keeps for the gradient of x is the unpacked weight."""
    y = x @ (weight.float() * 1.0).to(x.dtype).t() if kind == "fp8" else x @ weight.clone().t() * 1.0  # 1.0: scales
    return y if bias is None else y + bias


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Of all of them; what shares a storage counts once."""
    return sum({(storage := tensor.untyped_storage())._cdata: storage.nbytes() for tensor in tensors}.values())


def memory_of(device: torch.device) -> int:
    """Bytes of a GPU, or of this computer as far as its container may use them."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    total, allowed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), Path("/sys/fs/cgroup/memory.max")
    limit = allowed.read_text().strip() if allowed.is_file() else ""
    return min(total, int(limit)) if limit.isdigit() else total


@cache
def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.05) -> float:
    """FLOP/s of large matrix products, measured once in a process: the most that a model can reach here."""
    n = {"cuda": 8192, "cpu": 512}.get(device.type, 2048)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))  # of ones a GPU would make more a second
    rates, began = [], time.perf_counter()
    while len(rates) < 3 or time.perf_counter() - began < seconds:  # the first ones set up the library
        start = time.perf_counter()
        torch.mm(a, b)[0, 0].item()  # which waits for the device
        rates.append(2 * n**3 / (time.perf_counter() - start))
    return max(rates)
