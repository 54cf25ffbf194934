"""What is trained, a LoRA on the transformer or all its weights, and how it is saved so that diffusers loads it back."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, PeftConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from neighbor_grpo.errors import UserError, shown
from neighbor_grpo.models.directory import safetensors_is_whole
from neighbor_grpo.models.errors import failing
from neighbor_grpo.models.experts import Transformer, split_weights, transformers_of
from neighbor_grpo.models.family import Family
from neighbor_grpo.models.settings import Lora


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
    try:
        transformer.add_adapter(config)
    except ValueError as error:
        linear = {name.split(".")[-1] for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
        known = ", ".join(sorted(linear))
        raise UserError(f"model.lora.targets {targets} fit no layer: choose from the linear layers {known}") from error
    cast_training_params(transformer, torch.float32)
    for layer in _lora_layers(transformer):
        layer.cast_input_dtype_enabled = False
        for products in (layer.lora_A, layer.lora_B):
            for name, product in products.items():
                if isinstance(product, nn.Linear):
                    products[name] = CastingLinear(product)


def make_trainable(model: Family, lora: Lora | None) -> None:
    """Attach the LoRA of a run's settings to the model's transformer, or without one unfreeze all its weights."""
    if lora:
        add_lora(model.transformer, lora.rank, lora.alpha, lora.targets or model.lora_targets)
    else:
        train_all(model.transformer)


@contextmanager
def lora_off(transformer: nn.Module) -> Iterator[None]:
    """Switch the LoRA off: the model is then the one before training.

    diffusers' own switch also freezes the LoRA and unfreezes it afterwards.  FSDP2, which gathers and frees weights around
    every forward, would see only half of that.
    """
    layers = _lora_layers(transformer)
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


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
            transformer_lora_adapter_metadata=_metadata(part.peft_config["default"]),
        )


def _metadata(config: PeftConfig) -> dict[str, Any]:
    """Return a LoRA's settings, its sets in order, so that the same LoRA is the same file."""
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}


def load_lora(pipe: DiffusionPipeline, transformer: Transformer, source: str | Path) -> None:
    """Load what `save_lora` wrote, or any LoRA that diffusers reads.

    Raises UserError if an expert has none, and for a LoRA that is damaged or does not fit: all of it is used, or nothing.
    """
    experts = list(transformers_of(transformer))
    if missing := [name for name in experts[1:] if not _directory_of(name, Path(source)).is_dir()]:
        raise UserError(
            f"{source} has no directory {missing[0]}: this model has {len(experts)} experts, and a LoRA for it is a directory "
            f"with the .safetensors of the first, and that of the second in {missing[0]}"
        )
    for name in experts:
        place = _directory_of(name, Path(source)) if name != experts[0] else source
        with failing(f"{shown(str(place), 200)} is not a LoRA for this model in diffusers' layout"):
            _check_file(Path(place))
            said = pipe.lora_state_dict(place, use_safetensors=True)
            pipe.load_lora_weights(place, use_safetensors=True, **({} if name == experts[0] else {f"load_into_{name}": True}))
            _check_used(pipe, name, said[0] if isinstance(said, tuple) else said)


def _check_file(place: Path) -> None:
    """Raise ValueError for a file that was cut off."""
    for file in [place] if place.is_file() else sorted(place.glob("*.safetensors")):
        if not safetensors_is_whole(file):
            raise ValueError(f"{file.name} is damaged: download it again")


def _check_used(pipe: DiffusionPipeline, expert: str, weights: Mapping[str, Tensor]) -> None:
    """Raise ValueError for a LoRA with weights for a layer that the model lacks, which diffusers leaves out, or with NaN."""
    parts = {"transformer": getattr(pipe, expert)} | {
        name: part for name, part in pipe.components.items() if name.startswith("text_encoder") and part is not None
    }
    layers = {
        f"{name}.{layer}" for name, part in parts.items() for layer, m in part.named_modules() if isinstance(m, LoraLayer)
    }
    names = [name for name in weights if ".lora" in name]
    if not names:
        raise ValueError("it has no LoRA's weights")
    for name in names:
        if (layer := name.partition(".lora")[0]) not in layers:
            raise ValueError(f"this model has no layer {layer[:200]}")
        if not weights[name].isfinite().all():
            raise ValueError(f"{name[:200]} is not finite")


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


def _lora_layers(transformer: nn.Module) -> list[LoraLayer]:
    return [layer for layer in transformer.modules() if isinstance(layer, LoraLayer)]
