"""A model without its weights: what running it takes can be found out before they are loaded."""

from importlib import import_module
from pathlib import Path

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin
from huggingface_hub import snapshot_download
from torch import nn
from transformers import PreTrainedModel

from neighbor_grpo.errors import UserError
from neighbor_grpo.models.registry import FlowModel, adapter_of, located
from neighbor_grpo.models.settings import Drawing

META = torch.device("meta")
READ = ["*.json", "*.txt", "*.model", "*.jinja"]  # configurations and tokenizers


def skeleton(path_or_id: str | Path, dtype: torch.dtype = torch.float32, **drawing) -> FlowModel:
    """The model of `load_model`, its modules on the meta device, built from their configurations.

    No file of weights is opened, or downloaded; tokenizers, processors and the scheduler are there.  Raises UserError.
    """
    adapter, index = adapter_of(path_or_id)
    try:
        pipe = _pipeline(_local(path_or_id), index, dtype)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the configuration of the pipeline at {str(path_or_id)!r} does not load: {reason}") from error
    model = adapter(pipe, META, dtype, Drawing(**drawing))
    model._empty = model.blank(1)
    return model


def _local(path_or_id: str | Path) -> Path:
    """The pipeline's directory; of one on the hub what is read is downloaded."""
    path = Path(located(path_or_id))
    return path if path.is_dir() else Path(snapshot_download(str(path_or_id), allow_patterns=READ))


def _pipeline(path: Path, index: dict, dtype: torch.dtype) -> DiffusionPipeline:
    parts = {}
    for name, value in index.items():
        if isinstance(value, list) and len(value) == 2 and isinstance(value[1], str):
            parts[name] = _part(getattr(import_module(value[0]), value[1]), path, name, dtype)
        elif not name.startswith("_"):  # a setting, or a part that was left out, [None, None]
            parts[name] = None if value == [None, None] else value
    return getattr(diffusers, index["_class_name"])(**parts)


def _part(kind: type, path: Path, name: str, dtype: torch.dtype):
    if issubclass(kind, ModelMixin):
        with META:
            return _cast(kind.from_config(kind.load_config(path, subfolder=name)), dtype)
    if issubclass(kind, PreTrainedModel):
        config = kind.config_class.from_pretrained(path, subfolder=name)
        with META:
            return kind(config).to(dtype)
    return kind.from_pretrained(path, subfolder=name)


def _cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Weights in `dtype`, but for those that diffusers keeps in fp32."""
    keep = set(module._keep_in_fp32_modules or ())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and not keep & set(name.split(".")):
            tensor.data = tensor.data.to(dtype)
    return module
