"""The families by pipeline, and how a model is loaded."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import ModelMixin, SchedulerMixin

from neighbor_grpo.errors import UserError, shown
from neighbor_grpo.models.adapters import read_loras
from neighbor_grpo.models.backends import choose_attention, leave_out_cudnn
from neighbor_grpo.models.bundled import BUNDLED as BUNDLED
from neighbor_grpo.models.directory import INDEX, Index, check_directory, read_index, read_object
from neighbor_grpo.models.errors import failing
from neighbor_grpo.models.family import Family
from neighbor_grpo.models.flux import Flux
from neighbor_grpo.models.flux2 import Flux2
from neighbor_grpo.models.frozen import Frozen, stored
from neighbor_grpo.models.hunyuan_video import HunyuanVideo
from neighbor_grpo.models.lora import attach_base
from neighbor_grpo.models.other_transformer import Found, Other
from neighbor_grpo.models.quantization import quantization
from neighbor_grpo.models.qwen_image import QwenImage
from neighbor_grpo.models.sd3 import SD3
from neighbor_grpo.models.settings import ModelSettings
from neighbor_grpo.models.sources import READ, source_of
from neighbor_grpo.models.tokenizers import check_tokenizers
from neighbor_grpo.models.wan import Wan
from neighbor_grpo.models.wan_image import WanImage
from neighbor_grpo.models.z_image import ZImage

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
    """Load a model: a diffusers pipeline directory, a hub id, or one of BUNDLED.

    `settings` are the fields of ModelSettings.  Raises UserError if there is no pipeline or no family for it, and where a part
    of it is damaged.
    """
    chosen = ModelSettings(**settings)
    parts = Parts.of(path_or_id, chosen, weights=True)
    quantized = quantization(chosen.quantize, dtype) if chosen.quantize else {}

    def component(kind: Any, name: str) -> Any:
        """Load a component.  Raises UserError for weights that are not in its files, which the libraries draw at random."""
        config = {"quantization_config": quantized[name]} if name in quantized else {}
        other = parts.other if name == "transformer" else None
        if other and other.config is None:
            return other.load(kind, parts.place, dtype, quantized.get(name))
        if not issubclass(kind, ModelMixin | transformers.PreTrainedModel):
            return kind.from_pretrained(parts.place, subfolder=name)
        place, variant = (other.place, None) if other else (parts.place / name, chosen.variant)
        options = {"dtype": dtype, "variant": variant, "use_safetensors": True, "output_loading_info": True, **config}
        module, info = kind.from_pretrained(place, **options)
        if missing := sorted(info["missing_keys"]):
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(f"{place} lacks the weights {missing[0]}{others}: download the model again")
        return module

    with reading(path_or_id):
        model = parts.build(component, torch.device(device), dtype, chosen)
    model.closed = str(path_or_id) in BUNDLED
    attach_base(model.transformer, chosen.base_loras)
    leave_out_cudnn()
    if chosen.attention:
        choose_attention(model.transformer, chosen.attention)
    return model


@dataclass(frozen=True)
class Parts:
    """Hold what a model is built of: its family, its directory on this machine, its index, and another transformer."""

    family: type[Family]
    place: Path
    index: Index
    other: Found | None
    frozen: Frozen | None

    @classmethod
    def of(cls, path_or_id: str | Path, settings: ModelSettings, weights: bool) -> "Parts":
        """Find the parts of a model, download them, and check them; `weights`: with weights.  Raises UserError."""
        family, index = family_of(path_or_id, settings.revision)
        source = source_of(path_or_id, settings.revision)
        with reading(path_or_id):
            place = source.fetch(READ)
            index = check_index(place)  # which may have changed since
            check_directory(place, index, weights=False)
            check_classes(place, index)
            other = _other(settings, place, index, weights)
            own = _stored(place, index, other)
            frozen = other.frozen if other else own
            if frozen and frozen.packed and settings.quantize:
                raise UserError(f"model.quantize={settings.quantize}: the transformer is {frozen.what} already: leave it out")
            if weights:
                if frozen and frozen.packed == "nf4" and not torch.cuda.is_available():
                    raise UserError(
                        f"the transformer is {frozen.what}, which needs a CUDA device: choose a model of whole weights"
                    )
                _check_loras(place, index, other, settings)
                source.fetch_weights(_weighty(index, other), settings.variant)
                check_directory(place, index)
        return cls(family, place, index, other, frozen)

    def build(
        self, component: Callable[[Any, str], Any], device: torch.device, dtype: torch.dtype, settings: ModelSettings
    ) -> Family:
        """Make the model of components by their class and name."""
        names = sorted(self.index.components, key=lambda name: name != "transformer")  # what fits least is loaded first
        parts = {name: component(component_class(*self.index.components[name]), name) for name in names}
        pipeline: Any = getattr(diffusers, self.index.pipeline)  # one of MODELS
        pipe = pipeline(**parts, **self.index.settings, **dict.fromkeys(self.index.absent))
        check_tokenizers(pipe)
        model = self.family(pipe, device, dtype, settings)
        model.frozen = self.frozen
        return model


def _check_loras(place: Path, index: Index, other: Found | None, settings: ModelSettings) -> None:
    """Raise UserError for a LoRA that does not fit, before weights are read."""
    if not settings.base_loras:
        return
    parts = {}
    for name in (name for name in index.components if name.startswith("transformer")):
        kind = component_class(*index.components[name])
        config = other.config if other and name == "transformer" else None
        with torch.device("meta"):
            parts[name] = kind.from_config(config or kind.load_config(place, subfolder=name))
    for lora in settings.base_loras:
        read_loras(lora.path, parts)


def _weighty(index: Index, other: Found | None) -> dict[str, str]:
    """Return the components of a pipeline whose weights are needed, and the names of their classes."""
    kinds = {name: component_class(*one) for name, one in index.components.items()}
    weighty = {name: kind for name, kind in kinds.items() if issubclass(kind, ModelMixin | transformers.PreTrainedModel)}
    return {name: kind.__name__ for name, kind in weighty.items() if not (other and name == "transformer")}


def _other(settings: ModelSettings, place: Path, index: Index, weights: bool) -> Found | None:
    """Return the transformer that takes the place of the pipeline's, if the settings name one."""
    if not settings.transformer:
        return None
    if "transformer_2" in index.components:
        raise UserError("model.transformer: this model has two experts, and a transformer replaces one: leave it out")
    found = Other.of(settings.transformer).fetch(weights, component_class(*index.components["transformer"]))
    found.check_inputs(read_object(place / "transformer" / "config.json"))
    return found


def _stored(place: Path, index: Index, other: Found | None) -> Frozen | None:
    """Return how the pipeline's transformer is stored.  Raises UserError for other components in fewer bits."""
    found = {}
    for name in _weighty(index, other):
        config = read_object(place / name / "config.json")
        if not name.startswith("transformer") and "quantization_config" in config:
            raise UserError(
                f"{place / name} is quantized, and only a transformer may be: choose a pipeline with a whole {name}"
            )
        found[name] = stored(str(place / name), config)
    return found.get("transformer") or found.get("transformer_2")


def reading(path_or_id: str | Path) -> AbstractContextManager[None]:
    """Turn what goes wrong while a pipeline is read into a UserError that names it."""
    return failing(f"the pipeline at {shown(str(path_or_id), 200)} does not load")


def family_of(path_or_id: str | Path, revision: str | None = None) -> tuple[type[Family], Index]:
    """Return the family of a pipeline and its model_index.json, without loading its components.

    Raises UserError if there is no pipeline, no family for it, or a component of another library: a model_index.json comes
    with the weights from anywhere, so it must not decide which modules are imported.
    """
    place = source_of(path_or_id, revision).fetch([INDEX])
    if not (place / INDEX).is_file():
        raise UserError(
            f"no diffusers pipeline at {shown(str(path_or_id))}: give a directory with a {INDEX}, a hub id, or one of "
            f"{', '.join(BUNDLED)}"
        )
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
