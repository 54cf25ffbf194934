"""LoRAs on the layers of a transformer: new ones, those of files, several at a time, and the model without the trained one.

Each has a name in peft.  TRAINED is trained, or was by a run; START is the same before training, and only the reference has it;
all others belong to the base.
"""

import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from neighbor_grpo.errors import UserError
from neighbor_grpo.models.adapters import Lora, Pair
from neighbor_grpo.models.experts import Transformer, transformers_of
from neighbor_grpo.models.layouts import linear_layers

N = TypeVar("N", int, float)
TRAINED, START = "default", "start"


class CastingLinear(nn.Linear):
    """Multiply by the fp32 weights of a linear layer in the data type of the input.

    With it the frozen transformer runs in bf16 throughout, as in its pipeline.  Autocast would run norms in fp32, and peft's
    own cast of the input to the data type of the weights would run the LoRA's products in fp32.
    """

    def __init__(self, linear: nn.Linear) -> None:
        # on the meta device it takes no memory and draws nothing random
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight

    def forward(self, x: Tensor) -> Tensor:
        """Compute x @ weight.T."""
        return F.linear(x, self.weight.to(x.dtype))


def add_lora(transformer: Transformer, rank: int, alpha: float, targets: list[str]) -> None:
    """Attach a trainable LoRA (fp32) to the linear layers whose names end in `targets`; at first it changes nothing.

    Raises UserError if no layer has such a name.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # declared as an integer, but only divided by the rank
        target_modules=targets,
        init_lora_weights="gaussian",
    )
    for part in transformers_of(transformer).values():
        try:
            _add(part, config, TRAINED)
        except ValueError as error:
            known = ", ".join(sorted({name.split(".")[-1] for name in linear_layers(part)}))
            raise UserError(f"model.lora.targets {targets} fit no layer: choose from the linear layers {known}") from error
        cast_training_params(part, torch.float32)


def attach(transformer: ModelMixin, lora: Lora, name: str, strength: float = 1.0) -> None:
    """Attach the LoRA of a file: to be trained (fp32) if its name is TRAINED, else frozen, in the type of the transformer."""
    trained = name == TRAINED
    dtype = torch.float32 if trained else transformer.dtype
    if not trained:
        lora = {layer: _folded(pair, strength) for layer, pair in lora.items()}
    # peft looks at every module: to_out is a linear layer in one block of FLUX.2 and a list of layers in another
    names = [name for name, _ in transformer.named_modules() if name and ".lora_" not in name]
    targets = endings(lora, names)
    ranks = {layer: pair.rank for layer, pair in lora.items()}
    alphas = {layer: pair.alpha for layer, pair in lora.items()}
    config = LoraConfig(
        r=_most(ranks),
        lora_alpha=_most(alphas),  # type: ignore[arg-type]  # as above
        rank_pattern=_others(ranks),
        alpha_pattern=_others(alphas),
        target_modules=targets,
        exclude_modules=[one for one in names if one not in lora and _ends(one, targets)] or None,
        init_lora_weights=False,
    )
    for layer, module in _add(transformer, config, name).items():
        for products, values in ((module.lora_A, lora[layer].down), (module.lora_B, lora[layer].up)):
            weight: Any = products[name].weight
            weight.requires_grad_(trained)
            weight.data = weight.data.to(dtype) if weight.is_meta else values.to(weight.device, dtype, copy=True)

    config.exclude_modules = None  # which only names that are the end of others need; in a file its keys say which layers


def _add(transformer: ModelMixin, config: LoraConfig, name: str) -> dict[str, LoraLayer]:
    """Attach a LoRA beside those that are there; return the layers that it has been attached to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # of the LoRAs beside it, which are meant
        transformer.add_adapter(config, name)
    layers = {layer: module for layer, module in lora_layers(transformer).items() if name in module.lora_A}
    for module in layers.values():
        module.cast_input_dtype_enabled = False
        base: Any = module.get_base_layer()
        for products in (module.lora_A, module.lora_B):
            product: Any = products[name]  # which peft leaves on the CPU where another one is on the meta device
            products[name] = CastingLinear(product.to(base.weight.device))
    for module in lora_layers(transformer).values():  # peft has switched the others off
        module._active_adapter = [one for one in module.lora_A if one != START]
    return layers


def _folded(pair: Pair, strength: float) -> Pair:
    """Return the same update with alpha = r, times a strength."""
    return Pair(pair.down, pair.up.float() * (strength * pair.alpha / pair.rank), pair.rank)


def _most(values: dict[str, N]) -> N:
    """Return the value that occurs most often."""
    return max(dict.fromkeys(values.values()), key=list(values.values()).count)


def _others(values: dict[str, N]) -> dict[str, N]:
    """Return the layers with another value, as patterns of peft."""
    most = _most(values)
    return {f"^{layer}": value for layer, value in values.items() if value != most}


def endings(chosen: Collection[str], names: Collection[str]) -> list[str]:
    """Return endings, as short as possible, that only the chosen ones of some names have.

    >>> endings(["0.attn.q", "1.attn.q", "1.out.0"], ["0.attn.q", "0.attn.k", "1.attn.q", "1.out.0", "1.net.0"])
    ['attn.q', 'out.0']
    """
    unwanted, found = [name for name in names if name not in chosen], dict[str, None]()

    @cache
    def free(end: str) -> bool:
        return not any(_ends(other, [end]) for other in unwanted)

    for layer in chosen:
        parts = layer.split(".")
        short = (".".join(parts[-n:]) for n in range(min(2, len(parts)), len(parts)))
        found[next((end for end in short if free(end)), layer)] = None
    return list(found)


def _ends(layer: str, names: Collection[str]) -> bool:
    """Return whether the name of a layer ends in one of some names, as peft looks at it."""
    return any(f".{layer}".endswith(f".{name}") for name in names)


@contextmanager
def lora_off(transformer: nn.Module) -> Iterator[None]:
    """Show the model before training: without the trained LoRA, or with the one that it started from.

    peft's own switch also freezes and unfreezes weights.  FSDP2, which gathers and frees weights around every forward, would
    see only half of that.
    """
    kept = {module: module._active_adapter for module in lora_layers(transformer).values()}
    for module, names in kept.items():
        module._active_adapter = [one for one in (START if name == TRAINED else name for name in names) if one in module.lora_A]
    try:
        yield
    finally:
        for module, names in kept.items():
            module._active_adapter = names


def lora_layers(transformer: nn.Module) -> dict[str, LoraLayer]:
    """Return the layers that have a LoRA, by name."""
    return {name: module for name, module in transformer.named_modules() if isinstance(module, LoraLayer)}
