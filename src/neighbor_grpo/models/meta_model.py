"""Models without weights, on torch's meta device: what running them takes is known before weights are loaded."""

from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from torch import nn
from transformers import PreTrainedModel

from neighbor_grpo.models.family import Family
from neighbor_grpo.models.lora import attach_base
from neighbor_grpo.models.registry import Parts, reading
from neighbor_grpo.models.settings import ModelSettings

META = torch.device("meta")


def meta_model(path_or_id: str | Path, dtype: torch.dtype = torch.float32, **settings: Any) -> Family:
    """Build the model of `load_model` from its configurations, with all modules on the meta device.

    Weights are neither opened nor downloaded; tokenizers, processors and the scheduler are loaded.  Raises UserError.
    """
    chosen = ModelSettings(**settings)
    parts = Parts.of(path_or_id, chosen, weights=False)

    def component(kind: Any, name: str) -> Any:
        place = parts.place / name
        if issubclass(kind, ModelMixin):
            other = parts.other if name == "transformer" else None
            with META:
                module = kind.from_config((other and other.config) or kind.load_config(place))
            if other:
                other.check(module)
            return _cast(module, dtype)
        if issubclass(kind, PreTrainedModel):
            with META:
                return kind(kind.config_class.from_pretrained(place)).to(dtype)
        return kind.from_pretrained(place)

    with reading(path_or_id):
        model = parts.build(component, META, dtype, chosen)
        model.empty_text = model.blank_text(1)
        attach_base(model.transformer, chosen.base_loras)
        with torch.no_grad():  # that the components fit together
            x = torch.empty(1, *model.noise_shape(), device=META, dtype=dtype)
            model.to_image(model.velocity(model.pack(x), 0.5, model.blank(1)).to(dtype))
    return model


def _cast(module: ModelMixin, dtype: torch.dtype) -> nn.Module:
    """Cast weights to `dtype`, except those that diffusers keeps in fp32."""
    keep = set(module._keep_in_fp32_modules or ())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and not keep & set(name.split(".")):
            tensor.data = tensor.data.to(dtype)
    return module
