"""Models without weights, on torch's meta device: what running them takes is known before weights are loaded."""

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, ModelMixin
from huggingface_hub import snapshot_download
from torch import nn
from transformers import PreTrainedModel

from neighbor_grpo.errors import UserError
from neighbor_grpo.models.family import Family
from neighbor_grpo.models.registry import components, family_of, locate
from neighbor_grpo.models.settings import ModelSettings

META = torch.device("meta")
LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
READ = ["*.json", "*.txt", "*.model", "*.jinja"]  # configurations and tokenizers


def meta_model(path_or_id: str | Path, dtype: torch.dtype = torch.float32, **settings: Any) -> Family:
    """Build the model of `load_model` from its configurations, with all modules on the meta device.

    Weights are neither opened nor downloaded; tokenizers, processors and the scheduler are loaded.  Raises UserError.
    """
    family, index = family_of(path_or_id)
    try:
        pipe = _pipeline(_download(path_or_id), index, dtype)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the configuration of the pipeline at {str(path_or_id)!r} does not load: {reason}") from error
    model = family(pipe, META, dtype, ModelSettings(**settings))
    model.empty_text = model.blank_text(1)
    return model


def _download(path_or_id: str | Path) -> Path:
    """Return the directory of a pipeline; download the files to read of one on the hub."""
    path = Path(locate(path_or_id))
    return path if path.is_dir() else Path(snapshot_download(str(path_or_id), allow_patterns=READ))


def _pipeline(path: Path, index: dict[str, Any], dtype: torch.dtype) -> DiffusionPipeline:
    parts = {}
    for name, (library, kind) in components(index).items():
        parts[name] = _component(_class(library, kind), path, name, dtype)
    for name in index.keys() - parts.keys():
        if not name.startswith("_"):  # a setting, or a component that was left out, [None, None]
            parts[name] = None if index[name] == [None, None] else index[name]
    return _class("diffusers", index["_class_name"])(**parts)


def _class(library: str, name: str) -> Any:
    kind = getattr(LIBRARIES[library], name, None)
    if not isinstance(kind, type):
        raise ValueError(f"{library} has no class {name}: install the version that model_index.json names")
    return kind


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
