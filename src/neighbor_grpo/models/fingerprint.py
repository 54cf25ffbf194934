"""What the conditioning of prompts depends on, apart from the prompts."""

import hashlib
import json
from importlib.metadata import version
from typing import Any

import torch
from transformers.image_processing_base import ImageProcessingMixin

from neighbor_grpo.models.family import Family
from neighbor_grpo.models.tokenizers import contents, tokenizers_of

_CODE = ("neighbor-grpo", "diffusers", "transformers")
# Of a copy of the model, not of the model itself.
_PASSING = ("_name_or_path", "name_or_path", "transformers_version", "_diffusers_version", "torch_dtype", "dtype")


def fingerprint(model: Family) -> str:
    """Return a hash that changes with what conditioning depends on, apart from the prompt.

    That is this package and the libraries whose code encodes, the family, the shapes and types of its conditioning, the
    pipeline's own settings, the tokenizers and the templates of prompts, and the encoders: their settings, data type and
    weights (the ends of every tensor).  With source pictures it is also the VAE, the image processor, size and frames.
    """
    pipe = model.pipe
    encoders = {name: part for name in model.encoders if (part := getattr(pipe, name)) is not None}
    said: list[Any] = [*map(version, _CODE), type(model).__name__, model.max_sequence_length, str(model.dtype)]
    said += [(tuple(tensor.shape), str(tensor.dtype)) for tensor in model.blank(1)]
    said += [{name: value for name, value in pipe.config.items() if name[0] != "_" and name not in pipe.components}]
    said += [{name: contents(part) for name, part in tokenizers_of(pipe).items()}]
    said += [{name: getattr(part, "chat_template", None) for name, part in pipe.components.items()}]
    if model.source_images:
        encoders["vae"] = model.vae
        processors = [part for part in pipe.components.values() if isinstance(part, ImageProcessingMixin)]
        said += [model.height, model.width, model.frames, *(part.to_dict() for part in processors)]
    said += [{name: _settings(encoder.config) for name, encoder in encoders.items()}]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    for encoder in encoders.values():
        for name, weight in encoder.named_parameters():
            ends = torch.cat([weight.flatten()[:16], weight.flatten()[-16:]]).float().cpu()
            digest.update(name.encode() + str(tuple(weight.shape)).encode() + ends.numpy().tobytes())
    return digest.hexdigest()[:16]


def _settings(config: Any) -> dict[str, Any]:
    """Return the settings of an encoder, without what depends on where it lies and who saved it."""
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {key: value for key, value in values.items() if key not in _PASSING}
