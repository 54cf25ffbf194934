"""The LoRA's layers: their start, their names and their arithmetic."""

import pytest
import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig

from neighbor_grpo.models.attach import CastingLinear, add_lora
from neighbor_grpo.models.registry import load_model

TARGETS = ["to_q", "to_out.0"]


def trained(transformer):
    return {name: weight for name, weight in transformer.named_parameters() if weight.requires_grad}


def test_a_lora_is_pefts_own_for_a_seed(tiny_flux):
    """The same names and values, and as many random numbers are drawn."""
    model, other = (load_model(tiny_flux, dtype=torch.bfloat16) for _ in range(2))
    torch.manual_seed(3)
    add_lora(model.transformer, 4, 8, TARGETS)
    after = torch.rand(1)
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, init_lora_weights="gaussian")
    other.transformer.add_adapter(config)
    cast_training_params(other.transformer, torch.float32)
    assert torch.equal(after, torch.rand(1))
    ours, theirs = trained(model.transformer), trained(other.transformer)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert {weight.dtype for weight in ours.values()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_adds_its_product_in_the_type_of_its_input(tiny_flux, dtype):
    """y = W·x + b + alpha / r · B·A·x, every product rounded to the input's type."""
    model = load_model(tiny_flux, dtype=dtype)
    add_lora(model.transformer, 4, 8, TARGETS)
    layer = model.transformer.transformer_blocks[0].attn.to_q
    a, b = layer.lora_A["default"], layer.lora_B["default"]
    assert type(a) is type(b) is CastingLinear
    torch.nn.init.normal_(b.weight)
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(1)).to(dtype)
    low, high = a.weight.to(dtype), b.weight.to(dtype)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ low.T @ high.T * 2, rtol=0, atol=0)
