"""The families by pipeline, and how a model is loaded."""

import inspect
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from huggingface_hub import snapshot_download
from torch import nn

from neighbor_grpo.errors import UserError, shown
from neighbor_grpo.files.text import expand_home
from neighbor_grpo.models.adapters import read_loras
from neighbor_grpo.models.backends import choose_attention
from neighbor_grpo.models.directory import INDEX, Index, check_directory, read_index, read_object
from neighbor_grpo.models.errors import failing
from neighbor_grpo.models.family import Family
from neighbor_grpo.models.flux import Flux
from neighbor_grpo.models.flux2 import Flux2
from neighbor_grpo.models.hunyuan_video import HunyuanVideo
from neighbor_grpo.models.lora import attach_base
from neighbor_grpo.models.quantization import quantization
from neighbor_grpo.models.qwen_image import QwenImage
from neighbor_grpo.models.sd3 import SD3
from neighbor_grpo.models.settings import ModelSettings
from neighbor_grpo.models.tokenizers import check_tokenizers
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
_LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
_PARTS = (  # what a component of a pipeline is
    ModelMixin,
    SchedulerMixin,
    transformers.PreTrainedModel,
    transformers.PreTrainedTokenizerBase,
    transformers.ProcessorMixin,
    transformers.image_processing_base.ImageProcessingMixin,
    transformers.FeatureExtractionMixin,
)
_CONFIGURED = {  # the file with the settings of a component, and a key that each has
    ModelMixin: ("config.json", "_class_name"),
    SchedulerMixin: ("scheduler_config.json", "_class_name"),
    transformers.PreTrainedModel: ("config.json", "model_type"),
    transformers.PreTrainedTokenizerBase: ("tokenizer_config.json", None),
}


def load_model(
    path_or_id: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, **settings: Any
) -> Family:
    """Load a model: a diffusers pipeline directory, a hub id, or "scenes", the bundled model.

    `settings` are the fields of ModelSettings.  Raises UserError if there is no pipeline or no family for it, and where a part
    of it is damaged.
    """
    family, index = family_of(path_or_id)
    chosen = ModelSettings(**settings)
    absent, quantized = dict.fromkeys(index.absent), quantization(chosen.quantize, dtype) if chosen.quantize else {}
    with reading(path_or_id):
        place = locate(path_or_id)
        if not isinstance(place, Path):
            place = Path(DiffusionPipeline.download(place, use_safetensors=True, **absent))
            index = check_index(place)  # which may have changed since
        check_directory(place, index)
        check_classes(place, index)
        _check_loras(place, index, chosen)
        modules = _modules(place, index, dtype, quantized)
        pipe = DiffusionPipeline.from_pretrained(place, dtype=dtype, use_safetensors=True, **modules, **absent)
        check_tokenizers(pipe)
        model = family(pipe, torch.device(device), dtype, chosen)
    attach_base(model.transformer, chosen.base_loras)
    if chosen.attention:
        choose_attention(model.transformer, chosen.attention)
    return model


def _check_loras(place: Path, index: Index, chosen: ModelSettings) -> None:
    """Raise UserError for a LoRA that does not fit, before weights are read."""
    kinds = {name: component_class(*own) for name, own in index.components.items() if name.startswith("transformer")}
    if chosen.base_loras:
        with torch.device("meta"):
            parts = {name: kind.from_config(kind.load_config(place, subfolder=name)) for name, kind in kinds.items()}
        for lora in chosen.base_loras:
            read_loras(lora.path, parts)


def _modules(place: Path, index: Index, dtype: torch.dtype, quantized: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Load the components that have weights.  Raises UserError for weights that are not in the files.

    The libraries draw them at random and only log it.
    """
    modules = {}
    for name, (library, kind) in index.components.items():
        if not issubclass(found := component_class(library, kind), ModelMixin | transformers.PreTrainedModel):
            continue
        config = {"quantization_config": quantized[name]} if name in quantized else {}
        options = {"subfolder": name, "dtype": dtype, "use_safetensors": True, "output_loading_info": True, **config}
        modules[name], info = found.from_pretrained(place, **options)
        if missing := sorted(info["missing_keys"]):
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(f"{place / name} lacks the weights {missing[0]}{others}: download the model again")
    return modules


def reading(path_or_id: str | Path) -> AbstractContextManager[None]:
    """Turn what goes wrong while a pipeline is read into a UserError that names it."""
    return failing(f"the pipeline at {shown(str(path_or_id), 200)} does not load")


def locate(path_or_id: str | Path) -> str | Path:
    """Return the directory of a pipeline, for "scenes" that of the bundled model; a hub id as it is."""
    if str(path_or_id) == "scenes":
        return BUNDLED
    path = Path(expand_home(str(path_or_id)))
    return path if os.path.isdir(path) else str(path_or_id)


def family_of(path_or_id: str | Path) -> tuple[type[Family], Index]:
    """Return the family of a pipeline and its model_index.json, without loading its components.

    Raises UserError if there is no pipeline, no family for it, or a component of another library: a model_index.json comes
    with the weights from anywhere, so it must not decide which modules are imported.
    """
    place = locate(path_or_id)
    missing = UserError(
        f"no diffusers pipeline at {shown(str(path_or_id))}: give a directory with a {INDEX}, a hub id, or 'scenes'"
    )
    if not isinstance(place, Path):
        try:
            place = Path(snapshot_download(place, allow_patterns=INDEX))
        except (OSError, ValueError) as error:  # unreachable, unknown or not the name of a repository
            raise missing from error
    if not (place / INDEX).is_file():
        raise missing
    index = check_index(place)
    return MODELS[index.pipeline], index


def check_index(place: Path) -> Index:
    """Read the model_index.json of a directory.  Raises UserError if there is no family for it."""
    index = read_index(place)
    if index.pipeline not in MODELS:
        raise UserError(
            f"{shown(str(place))} is a {shown(index.pipeline)[1:-1]}, which is not supported: choose a model of "
            f"{', '.join(MODELS)}, or add a family (docs/new-family.md)"
        )
    return index


def check_classes(place: Path, index: Index) -> None:
    """Check that the classes of all components exist, are those of components, and take their configurations.

    Raises UserError.
    """
    known = inspect.signature(getattr(diffusers, index.pipeline).__init__).parameters
    required = {name for name, parameter in known.items() if parameter.default is parameter.empty} - {"self"}
    for name in [*index.components, *index.absent, *index.settings]:
        if name not in known:
            raise UserError(f"a {index.pipeline} has no component or setting {shown(name)}: remove it from {place / INDEX}")
    for name in sorted(required - index.components.keys() - {*MODELS[index.pipeline].optional}):
        raise UserError(f"{place / INDEX} names no {name}, which a {index.pipeline} needs: choose a whole pipeline")
    for name, (library, kind) in index.components.items():
        found = component_class(library, kind)
        for part, (file, key) in _CONFIGURED.items():
            if issubclass(found, part):
                config = read_object(place / name / file)
                if not config or (key and key not in config):
                    raise UserError(f"{place / name / file} lacks {key or 'its settings'}: download the model again")
                _check_types(place / name / file, config, found)


def component_class(library: str, name: str) -> Any:
    """Return the class of a component.  Raises UserError for a name that is not one."""
    kind = getattr(_LIBRARIES[library], name, None)
    if not isinstance(kind, type) or not issubclass(kind, _PARTS):
        raise UserError(f"{library} has no class {name} for a component: install the version that {INDEX} names")
    return kind


def _check_types(file: Path, config: dict[str, Any], kind: type) -> None:
    """Raise UserError for a text in the place of a number, or the reverse, by the defaults of a class."""
    for name, parameter in inspect.signature(kind.__init__).parameters.items():  # type: ignore[misc]
        value, default = config.get(name), parameter.default
        number = isinstance(default, int | float)
        if (isinstance(value, str) and number) or (isinstance(value, int | float) and isinstance(default, str)):
            raise UserError(f"{file}: {name} must be like {default!r}, not {shown(value)}: download the model again")
