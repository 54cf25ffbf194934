"""What is trained: a LoRA on the transformer, or all of it; and how it is saved so that diffusers loads it back."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import nn

from neighbor_grpo.errors import UserError


def add_lora(transformer: nn.Module, rank: int, alpha: float, targets: list[str]) -> None:
    """Attach a trainable LoRA (fp32) to the linear layers whose names end in `targets`; at first it changes nothing."""
    try:
        transformer.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights="gaussian"))
    except ValueError as error:
        linear = {name.split(".")[-1] for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
        raise UserError(f"lora.targets {targets} fit no layer; linear layers end in {', '.join(sorted(linear))}") from error
    cast_training_params(transformer, torch.float32)


@contextmanager
def lora_off(transformer: nn.Module) -> Iterator[None]:
    """The model as it was before the LoRA."""
    transformer.disable_adapters()
    try:
        yield
    finally:
        transformer.enable_adapters()


def train_all(transformer: nn.Module) -> None:
    """Full fine-tuning, with fp32 weights."""
    transformer.requires_grad_(True).to(torch.float32)


def save_lora(pipe: DiffusionPipeline, transformer: nn.Module, directory: Path) -> None:
    """Weights and metadata (alpha among them) in the layout that `load_lora_weights` reads."""
    type(pipe).save_lora_weights(
        directory,
        transformer_lora_layers=get_peft_model_state_dict(transformer),
        transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
    )
