"""What is trained: a LoRA on the transformer, or all of it; and how it is saved so that diffusers loads it back."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from neighbor_grpo.errors import UserError
from neighbor_grpo.models.experts import parts
from neighbor_grpo.models.registry import FlowModel


class Casting(nn.Linear):
    """fp32 weights that multiply in their input's type.

    With it the frozen transformer runs in bf16 throughout, as in its pipeline; autocast, or peft's own cast of the input to
    the weights' type, would run norms, or the LoRA's products, in fp32.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


def add_lora(transformer: nn.Module, rank: int, alpha: float, targets: list[str]) -> None:
    """Attach a trainable LoRA (fp32) to the linear layers whose names end in `targets`; at first it changes nothing."""
    try:
        transformer.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights="gaussian"))
    except ValueError as error:
        linear = {name.split(".")[-1] for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
        raise UserError(f"lora.targets {targets} fit no layer; linear layers end in {', '.join(sorted(linear))}") from error
    cast_training_params(transformer, torch.float32)
    for layer in transformer.modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = False
            for product in (*layer.lora_A.values(), *layer.lora_B.values()):
                product.__class__ = Casting


def make_trainable(model: FlowModel, lora) -> None:
    """A LoRA of a run's settings (config.Lora) on the model's transformer, or without them all of its weights."""
    if lora:
        add_lora(model.transformer, lora.rank, lora.alpha, lora.targets or list(model.lora_targets))
    else:
        train_all(model.transformer)


@contextmanager
def lora_off(transformer: nn.Module) -> Iterator[None]:
    """The model as it was before the LoRA.

    diffusers' own switch also freezes the LoRA and thaws it afterwards, which FSDP2, whose weights come and go with every
    forward, would see half of.
    """
    layers = [layer for layer in transformer.modules() if isinstance(layer, LoraLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def train_all(transformer: nn.Module) -> None:
    """Full fine-tuning, with fp32 weights."""
    transformer.requires_grad_(True).to(torch.float32)


def save_lora(
    pipe: DiffusionPipeline, transformer: nn.Module, directory: Path, weights: dict[str, Tensor] | None = None
) -> None:
    """Weights (by name, as in the transformer; by default its own) and metadata, alpha among them, in the layout that
    `load_lora_weights` reads; a second expert's in directory/transformer_2."""
    for name, part, own in parts(transformer, weights):
        type(pipe).save_lora_weights(
            _place(directory, name),
            transformer_lora_layers=get_peft_model_state_dict(part, own),
            transformer_lora_adapter_metadata=part.peft_config["default"].to_dict(),
        )


def load_lora(pipe: DiffusionPipeline, transformer: nn.Module, source: str | Path) -> None:
    """What `save_lora` wrote, or any LoRA that diffusers reads.  Raises UserError where it has not one for every expert."""
    experts = [name for name, _, _ in parts(transformer)]
    if missing := [name for name in experts[1:] if not _place(Path(source), name).is_dir()]:
        raise UserError(
            f"{source} has no directory {missing[0]}: this model has {len(experts)} experts, and a LoRA for it is a directory "
            f"with the first one's .safetensors, and with the other's in {missing[0]}"
        )
    pipe.load_lora_weights(source, use_safetensors=True)
    for name in experts[1:]:
        pipe.load_lora_weights(_place(Path(source), name), use_safetensors=True, **{f"load_into_{name}": True})


def save_all(transformer: nn.Module, directory: Path, weights: dict[str, Tensor]) -> None:
    """A transformer like this one with these weights (by name), in the layout that `from_pretrained` reads."""
    for name, part, own in parts(transformer, weights):
        with torch.device("meta"):
            like = type(part).from_config(part.config)
        like.load_state_dict(part.state_dict() | own, assign=True)
        like.save_pretrained(_place(directory, name))


def load_all(transformer: nn.Module, directory: Path) -> None:
    """What `save_all` wrote."""
    for name, part, _ in parts(transformer):
        part.load_state_dict(type(part).from_pretrained(_place(directory, name)).state_dict())


def _place(directory: Path, name: str) -> Path:
    """Of one of a pipeline's transformers, where the first one's is `directory`."""
    return directory if name == "transformer" else directory / name
