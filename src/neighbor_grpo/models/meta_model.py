"""Models without weights, on torch's meta device: what running them takes is known before weights are loaded."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin
from huggingface_hub import snapshot_download
from torch import nn
from transformers import PreTrainedModel

from neighbor_grpo.models.directory import Index, check_directory
from neighbor_grpo.models.family import Family
from neighbor_grpo.models.lora import attach_base
from neighbor_grpo.models.registry import check_classes, component_class, family_of, locate, reading
from neighbor_grpo.models.settings import ModelSettings
from neighbor_grpo.models.tokenizers import check_tokenizers

META = torch.device("meta")
READ = ["*.json", "*.txt", "*.model", "*.jinja"]  # configurations and tokenizers


def meta_model(path_or_id: str | Path, dtype: torch.dtype = torch.float32, **settings: Any) -> Family:
    """Build the model of `load_model` from its configurations, with all modules on the meta device.

    Weights are neither opened nor downloaded; tokenizers, processors and the scheduler are loaded.  Raises UserError.
    """
    family, index = family_of(path_or_id)
    with reading(path_or_id):
        place = _download(path_or_id)
        check_directory(place, index, weights=False)
        check_classes(place, index)
        pipe = _pipeline(place, index, dtype)
        check_tokenizers(pipe)
        chosen = ModelSettings(**settings)
        model = family(pipe, META, dtype, chosen)
        model.empty_text = model.blank_text(1)
        attach_base(model.transformer, chosen.base_loras)
        with torch.no_grad():  # that the components fit together
            x = torch.empty(1, *model.noise_shape(), device=META, dtype=dtype)
            model.to_image(model.velocity(model.pack(x), 0.5, model.blank(1)).to(dtype))
    return model


def _download(path_or_id: str | Path) -> Path:
    """Return the directory of a pipeline; download the files to read of one on the hub."""
    place = locate(path_or_id)
    return place if isinstance(place, Path) else Path(snapshot_download(place, allow_patterns=READ))


def _pipeline(place: Path, index: Index, dtype: torch.dtype) -> DiffusionPipeline:
    parts = {
        name: _component(component_class(library, kind), place, name, dtype)
        for name, (library, kind) in index.components.items()
    }
    kind = getattr(diffusers, index.pipeline)  # one of registry.MODELS
    return kind(**parts, **index.settings, **dict.fromkeys(index.absent))


def _component(kind: Any, path: Path, name: str, dtype: torch.dtype) -> Any:
    if issubclass(kind, ModelMixin):
        with META:
            return _cast(kind.from_config(kind.load_config(path, subfolder=name)), dtype)
    if issubclass(kind, PreTrainedModel):
        config = kind.config_class.from_pretrained(path, subfolder=name)
        with META:
            return kind(config).to(dtype)
    return kind.from_pretrained(path, subfolder=name)


def _cast(module: ModelMixin, dtype: torch.dtype) -> nn.Module:
    """Cast weights to `dtype`, except those that diffusers keeps in fp32."""
    keep = set(module._keep_in_fp32_modules or ())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and not keep & set(name.split(".")):
            tensor.data = tensor.data.to(dtype)
    return module
