"""How a device computes what a model asks for, imitated on the meta device."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

aten = torch.ops.aten
# Functions that autocast runs in the lower precision, and those that it runs in fp32 on CUDA (ATen/autocast_mode.h); of
# both only what transformers use.
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


class Kernels(TorchFunctionMode):
    """Compute meta tensors as a device of a type does: fused attention and norms, autocast to `lower`, packed weights.

    `packed`, "int8", "fp8" or "gguf", is how frozen weights of linear layers are kept.

    `cast`: copies of weights that autocast keeps until the forward ends.
    """

    def __init__(self, device: str, lower: torch.dtype | None = None, packed: str | None = None) -> None:
        super().__init__()
        self.device, self.lower, self.packed, self.cast = device, lower, packed, None

    @contextmanager
    def of(self, module: nn.Module, checkpointing: bool = False) -> Iterator[None]:
        """Enter this mode, also where gradient checkpointing computes once more."""

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
    """Compute scaled_dot_product_attention by the kernel that torch chooses on the device; none keeps L x L scores."""
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
    """Compute torch's rms_norm in one kernel where CUDA has it: for input and weight of one type."""
    if weight is not None and weight.dtype != input.dtype:
        return F.rms_norm(input, normalized_shape, weight, eps)
    return FusedNorm.apply(input, weight, input.shape[: -len(normalized_shape)])


class FusedNorm(torch.autograd.Function):
    """Keep the input and one number for each norm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, norms: torch.Size) -> Tensor:
        """Return the normalised input."""
        ctx.save_for_backward(x, weight, x.new_empty(norms, dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        """Return the gradients of input and weight."""
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight) if ctx.needs_input_grad[1] else None, None


def packed_linear(kind: str, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply by a packed weight with torchao's operations; autograd keeps the unpacked weight for the gradient of x."""
    y = x @ (weight.float() * 1.0).to(x.dtype).t() if kind == "fp8" else x @ weight.clone().t() * 1.0  # 1.0: scales
    return y if bias is None else y + bias
