"""What makes a transformer take less memory or time: quantized weights, attention kernels, 8-bit products."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from diffusers import BitsAndBytesConfig, PipelineQuantizationConfig, TorchAoConfig
from torch import Tensor, nn

from neighbor_grpo.errors import UserError

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max  # 448


def quantization(kind: str, dtype: torch.dtype) -> PipelineQuantizationConfig:
    """diffusers' own configuration of a pipeline whose transformers alone are quantized.  UserError without a library."""
    try:
        if kind == "nf4":
            if not torch.cuda.is_available():
                raise UserError("model.quantize=nf4 needs a CUDA device: int8 and fp8 work on every one")
            import bitsandbytes  # noqa: F401, diffusers looks for it later and less clearly

            config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
        else:
            from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

            config = TorchAoConfig({"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}[kind](version=2))
    except ImportError as error:
        raise UserError(f"model.quantize={kind} needs the package {error.name}: pip install 'neighbor-grpo[lean]'") from error
    return PipelineQuantizationConfig(quant_mapping={"transformer": config, "transformer_2": config})


def adamw(name: str) -> type[torch.optim.Optimizer]:
    """The optimizer of a name: AdamW, or AdamW with its moments in 8 bits (of weights of 4096 numbers and more)."""
    if name == "adamw":
        return torch.optim.AdamW
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError(f"optimizer.name={name} needs bitsandbytes: pip install 'neighbor-grpo[lean]'") from error
    return AdamW8bit


def choose_attention(transformer: nn.Module, name: str) -> None:
    """For all models of the process, as diffusers keeps it.  Raises UserError where it has no such backend, or no package."""
    try:
        transformer.set_attention_backend(name)
    except (ValueError, ImportError, RuntimeError) as error:
        raise UserError(f"model.attention={name}: {' '.join(str(error).split())}") from error


def compile_blocks(transformer: nn.Module) -> None:
    """torch.compile of the block that repeats: one compilation serves them all.  Raises UserError where none does."""
    try:
        transformer.compile_repeated_blocks()
    except ValueError as error:
        raise UserError(f"model.compile: {type(transformer).__name__} names no repeated blocks; leave it out") from error


@contextmanager
def fp8_products(transformer: nn.Module) -> Iterator[None]:
    """The linear layers' products in e4m3, every row of the activations and of the weights scaled by its largest value.

    Weights are rounded on entry, so they are those of the moment; embeddings and the last projection, which are outside of
    the blocks and small, stay as they are.  No gradient goes through.
    """
    layers = [
        layer
        for name, layer in transformer.named_modules()
        if type(layer) is nn.Linear
        and "blocks." in name
        and "lora_" not in name
        and layer.in_features % 16 == layer.out_features % 16 == 0  # what the hardware multiplies
    ]
    for layer in layers:
        layer.forward = partial(_product, *rounded(layer.weight.detach()), layer.bias)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """(x / scale in e4m3, scale) by rows of x [N, K]; scale [N, 1] fp32."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp_min(1e-12) / LARGEST
    return (x.float() / scale).clamp(-LARGEST, LARGEST).to(E4M3), scale


def _product(weight: Tensor, weight_scale: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """x @ weight.T + bias"""
    rows, scale = rounded(x.flatten(0, -2))
    if x.is_cuda or x.is_meta:
        y = torch._scaled_mm(rows, weight.t(), scale_a=scale, scale_b=weight_scale.t(), out_dtype=torch.bfloat16)
    else:  # the same numbers without the speed
        y = (rows.float() @ weight.float().t()) * scale * weight_scale.t()
    y = y.to(x.dtype).unflatten(0, x.shape[:-1])
    return y if bias is None else y + bias
