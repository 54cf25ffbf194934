"""What is trained, a LoRA on the transformer or all its weights, and how it is saved so that diffusers loads it back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from peft import PeftConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from neighbor_grpo.errors import UserError, shown
from neighbor_grpo.models.adapters import Lora, read_loras
from neighbor_grpo.models.attach import START, TRAINED, add_lora, attach, endings
from neighbor_grpo.models.errors import failing
from neighbor_grpo.models.experts import Transformer, split_weights, transformers_of
from neighbor_grpo.models.family import Family
from neighbor_grpo.models.layouts import linear_layers
from neighbor_grpo.models.settings import BaseLora
from neighbor_grpo.models.settings import Lora as Settings


def make_trainable(model: Family, lora: Settings | None) -> None:
    """Attach the LoRA of a run's settings to the model's transformer, or without one unfreeze all its weights."""
    if lora is None and model.frozen:
        raise UserError(
            f"the transformer is {model.frozen.what}, whose weights are rounded: train a LoRA over them (model.lora)"
        )
    if lora is None:
        train_all(model.transformer)
    elif lora.path:
        _continue(model.transformer, lora, lora.path)
    else:
        assert lora.rank and lora.alpha  # which its settings check
        add_lora(model.transformer, lora.rank, lora.alpha, lora.targets or model.lora_targets)


def _continue(transformer: Transformer, lora: Settings, path: str) -> None:
    """Attach a LoRA that was trained before.  Raises UserError where the settings say another one."""
    parts = transformers_of(transformer)
    for name, start in read_loras(path, parts).items():
        _check_given(lora, start, list(linear_layers(parts[name])), path)
        if lora.reference == "start":
            attach(parts[name], start, START)
        attach(parts[name], start, TRAINED)


def _check_given(lora: Settings, start: Lora, layers: list[str], path: str) -> None:
    """Raise UserError for settings that differ from those of the LoRA that is trained on."""
    ranks, alphas = {pair.rank for pair in start.values()}, {pair.alpha for pair in start.values()}
    given = lora.targets or []
    adapted = {layer for layer in layers if any(f".{layer}".endswith(f".{end}") for end in given)}
    for key, said, found, same in (
        ("rank", lora.rank, ranks, ranks == {lora.rank}),
        ("alpha", lora.alpha, alphas, alphas == {lora.alpha}),
        ("targets", lora.targets, endings(start, layers), adapted == start.keys()),
    ):
        if said is not None and not same:
            has = ", ".join(map(str, sorted(found)[:8]))
            raise UserError(f"model.lora.{key} is {said}, and {shown(path, 200)} has {has}: leave it out, or set it to null")


def train_all(transformer: nn.Module) -> None:
    """Unfreeze all weights, in fp32."""
    transformer.requires_grad_(True).to(torch.float32)


def save_lora(
    pipe: DiffusionPipeline, transformer: Transformer, directory: Path, weights: dict[str, Tensor] | None = None
) -> None:
    """Save the LoRA in the layout that `load_lora_weights` reads; a second expert's in directory/transformer_2.

    `weights` by their names in the transformer replace its own.  The metadata hold alpha, without which diffusers would
    assume another scale.
    """
    own = split_weights(transformer, weights) if weights else {}
    for name, part in transformers_of(transformer).items():
        type(pipe).save_lora_weights(
            _directory_of(name, directory),
            transformer_lora_layers=get_peft_model_state_dict(part, own.get(name)),
            transformer_lora_adapter_metadata=_metadata(part.peft_config[TRAINED]),
        )


def _metadata(config: PeftConfig) -> dict[str, Any]:
    """Return a LoRA's settings, its sets in order, so that the same LoRA is the same file."""
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}


def load_lora(transformer: Transformer, source: str | Path, name: str = TRAINED, strength: float = 1.0) -> None:
    """Attach the LoRA of a file or folder, of any layout, with all of its layers; it is not trained.

    Raises UserError for a LoRA that is damaged or does not fit; nothing is attached then.
    """
    parts = transformers_of(transformer)
    for part, lora in read_loras(str(source), parts).items():
        attach(parts[part], lora, name, strength)
    transformer.requires_grad_(False)


def attach_base(transformer: Transformer, loras: Sequence[BaseLora]) -> None:
    """Attach the LoRAs that belong to the base."""
    for n, lora in enumerate(loras):
        load_lora(transformer, lora.path, f"base_{n}", lora.strength)


def save_all(transformer: Transformer, directory: Path, weights: dict[str, Tensor]) -> None:
    """Save the transformer with `weights`, by their names, in the layout that `from_pretrained` reads."""
    own = split_weights(transformer, weights)
    for name, part in transformers_of(transformer).items():
        with torch.device("meta"):
            copy = type(part).from_config(part.config)
        copy.load_state_dict(part.state_dict() | own[name], assign=True)
        copy.save_pretrained(_directory_of(name, directory))


def load_all(transformer: Transformer, directory: Path) -> None:
    """Load what `save_all` wrote.  Raises UserError where it is damaged or of another model."""
    for name, part in transformers_of(transformer).items():
        place = _directory_of(name, directory)
        with failing(f"{shown(str(place), 200)} does not hold weights of this model"):
            stored, info = type(part).from_pretrained(place, use_safetensors=True, output_loading_info=True)
            if info["missing_keys"]:  # which would be drawn at random
                raise ValueError(f"{min(info['missing_keys'])} is missing")
            part.load_state_dict(stored.state_dict())


def _directory_of(name: str, directory: Path) -> Path:
    """Return the directory of one of a pipeline's transformers, where the first one's is `directory`."""
    return directory if name == "transformer" else directory / name
