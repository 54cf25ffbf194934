"""The families by pipeline, and how a model is loaded."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from neighbor_grpo.errors import UserError
from neighbor_grpo.models.backends import choose_attention
from neighbor_grpo.models.family import Family
from neighbor_grpo.models.flux import Flux
from neighbor_grpo.models.flux2 import Flux2
from neighbor_grpo.models.hunyuan_video import HunyuanVideo
from neighbor_grpo.models.quantization import quantization
from neighbor_grpo.models.qwen_image import QwenImage
from neighbor_grpo.models.sd3 import SD3
from neighbor_grpo.models.settings import ModelSettings
from neighbor_grpo.models.wan import Wan
from neighbor_grpo.models.wan_image import WanImage
from neighbor_grpo.models.z_image import ZImage

BUNDLED = Path(__file__).parent.parent / "scenes" / "model"
MODELS: dict[str, type[Family]] = {  # name of the diffusers pipeline class -> family
    "FluxPipeline": Flux,
    "Flux2Pipeline": Flux2,
    "Flux2KleinPipeline": Flux2,
    "ZImagePipeline": ZImage,
    "StableDiffusion3Pipeline": SD3,
    "QwenImagePipeline": QwenImage,
    "HunyuanVideoPipeline": HunyuanVideo,
    "WanPipeline": Wan,
    "WanImageToVideoPipeline": WanImage,
}
LIBRARIES = ("diffusers", "transformers")  # whose classes a model_index.json may name


def load_model(
    path_or_id: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, **settings: Any
) -> Family:
    """Load a model: a diffusers pipeline directory, a hub id, or "scenes", the bundled model.

    `settings` are the fields of ModelSettings.  Raises UserError if there is no pipeline or no family for it.
    """
    family, index = family_of(path_or_id)
    chosen = ModelSettings(**settings)
    dropped = {name: None for name, kind in index.items() if kind == [None, None]}  # saved without, for instance SD3's T5
    quantized = {"quantization_config": quantization(chosen.quantize, dtype)} if chosen.quantize else {}
    try:
        pipe = DiffusionPipeline.from_pretrained(locate(path_or_id), dtype=dtype, use_safetensors=True, **quantized, **dropped)
    except (OSError, ValueError) as error:
        raise UserError(f"the pipeline at {str(path_or_id)!r} does not load: {_first_line(error)}") from error
    model = family(pipe, torch.device(device), dtype, chosen)
    if chosen.attention:
        choose_attention(model.transformer, chosen.attention)
    return model


def locate(path_or_id: str | Path) -> str | Path:
    """Return the directory of the bundled model for "scenes", and everything else as it is."""
    return BUNDLED if str(path_or_id) == "scenes" else path_or_id


def family_of(path_or_id: str | Path) -> tuple[type[Family], dict[str, Any]]:
    """Return the family of a pipeline and its model_index.json, without loading its components.

    Raises UserError if there is no pipeline, no family for it, or a component of another library: a model_index.json comes
    with the weights from anywhere, so it must not decide which modules are imported.
    """
    try:
        index = DiffusionPipeline.load_config(locate(path_or_id))
        name = str(index["_class_name"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"no diffusers pipeline at {str(path_or_id)!r}: give a directory with a model_index.json, a hub id, or 'scenes'"
        ) from error
    if name not in MODELS:
        raise UserError(
            f"{str(path_or_id)!r} is a {name}, which is not supported: choose a model of {', '.join(MODELS)}, "
            "or add a family (docs/new-family.md)"
        )
    for component, (library, kind) in components(index).items():
        if library not in LIBRARIES:
            raise UserError(
                f"the component {component!r} of {str(path_or_id)!r} is a {library}.{kind}: "
                f"choose a pipeline whose components are classes of {' or '.join(LIBRARIES)}"
            )
    return MODELS[name], index


def components(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Return library and class of each component that a model_index.json names."""
    pairs = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    return {name: (str(library), str(kind)) for name, (library, kind) in pairs.items() if isinstance(kind, str)}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
