"""Fewer bits: quantized weights of a frozen transformer, and 8-bit products in the rollout."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from diffusers import BitsAndBytesConfig, TorchAoConfig
from torch import Tensor, nn

from neighbor_grpo.errors import UserError

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max  # 448


def quantization(kind: str, dtype: torch.dtype) -> dict[str, BitsAndBytesConfig | TorchAoConfig]:
    """Build diffusers' configurations that quantize the transformers of a pipeline, by their names.

    Raises UserError if the library is missing, or for nf4 without a CUDA device.
    """
    try:
        if kind == "nf4":
            if not torch.cuda.is_available():
                raise UserError("model.quantize=nf4 needs a CUDA device: choose int8 or fp8, which work on every device")
            import bitsandbytes  # noqa: F401, diffusers looks for it later and reports it less clearly

            config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
        else:
            from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

            config = TorchAoConfig({"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}[kind](version=2))
    except ImportError as error:
        raise UserError(f"model.quantize={kind} needs the package {error.name}: pip install 'neighbor-grpo[lean]'") from error
    return {"transformer": config, "transformer_2": config}


def quantize_loaded(transformer: nn.Module, config: BitsAndBytesConfig | TorchAoConfig) -> None:
    """Quantize the linear layers of a transformer that was read from a single file, where diffusers leaves them as they are.

    Raises UserError for nf4.
    """
    if isinstance(config, BitsAndBytesConfig):
        raise UserError("model.quantize=nf4 needs a directory, and model.transformer is a file: choose int8 or fp8")
    from torchao.quantization import quantize_

    quantize_(transformer, config.quant_type)


@contextmanager
def fp8_products(transformer: nn.Module) -> Iterator[None]:
    """Compute the products of the blocks' linear layers in e4m3, each row scaled by its largest value, without gradients.

    Weights are rounded on entry, so they are those of that moment.  Embeddings and the last projection, which are outside
    of the blocks and small, stay as they are, and so does a LoRA.
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
        product = partial(_product, *rounded(layer.weight.detach()), layer.bias)
        layer.forward = product  # type: ignore[method-assign]  # torch calls an instance's own forward; removed below
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round x [N, K] to e4m3 by rows: return (x / scale in e4m3 [N, K], scale [N, 1] fp32)."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp_min(1e-12) / LARGEST
    return (x.float() / scale).clamp(-LARGEST, LARGEST).to(E4M3), scale


def _product(weight: Tensor, weight_scale: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """Compute x @ weight.T + bias."""
    rows, scale = rounded(x.flatten(0, -2))
    if x.is_cuda or x.is_meta:
        y = torch._scaled_mm(rows, weight.t(), scale_a=scale, scale_b=weight_scale.t(), out_dtype=torch.bfloat16)
    else:  # the same numbers without the speed
        y = (rows.float() @ weight.float().t()) * scale * weight_scale.t()
    y = y.to(x.dtype).unflatten(0, x.shape[:-1])
    return y if bias is None else y + bias
