"""Exports: the trained weights of a run as other programs load them, each a folder that can be a repository on the hub.

diffusers   a LoRA as `load_lora_weights` finds it in the folder, or transformer/ after a full fine-tune
comfyui     the same LoRA by the layers' names in ComfyUI, in a file that has the name of the run
merged      a whole pipeline directory, with the trained weights in it

diffusers also reads ComfyUI's names, except for HunyuanVideo: then the files of both forms are the same but for their name.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from neighbor_grpo.files import atomic
from neighbor_grpo.models.adapters import read_loras
from neighbor_grpo.models.comfyui import comfyui_layers, is_shared, shared_layers
from neighbor_grpo.models.exchange import FILE, Adapter, read_adapter, write_layers
from neighbor_grpo.models.experts import transformers_of
from neighbor_grpo.models.family import Family
from neighbor_grpo.models.merging import remove_places, update_by_lora, update_by_weights, write_merged
from neighbor_grpo.models.meta_model import meta_model
from neighbor_grpo.models.registry import family_of
from neighbor_grpo.run.card import write_card
from neighbor_grpo.run.export_request import Request
from neighbor_grpo.run.weights import own_adapters

_FIRST, _SECOND = "transformer", "transformer_2"  # names of the trained transformers in a pipeline
_NOISE = {_FIRST: "_high_noise", _SECOND: "_low_noise"}  # of which one each expert is, as other programs call it


def export(request: Request) -> Path:
    """Write an export and return its directory.  Raises UserError where the model cannot be exported in this form."""
    family, _ = family_of(request.config.model.path, request.config.model.revision)
    places = _places(request.weights)
    adapters = _adapters(request, places) if request.lora else {}
    with atomic.directory(request.out, "export") as aside:
        parts = list(places)
        if request.form == "merged":
            updates = {name: update_by_lora(adapter.layers) for name, adapter in adapters.items()}
            updates = updates or {name: update_by_weights(place) for name, place in places.items()}
            write_merged(request.config.model.path, request.config.model.revision, updates, aside)
        elif adapters:
            parts = _write_lora(request, family, adapters, aside)
        else:
            for name, place in places.items():
                shutil.copytree(place, aside / name, ignore=shutil.ignore_patterns(atomic.MANIFEST, _SECOND))
            remove_places(aside)
        shared = all(is_shared(family, adapter.layers) for adapter in adapters.values())
        write_card(request, family, parts, shared, aside)
    return request.out


def _adapters(request: Request, places: Mapping[str, Path]) -> dict[str, Adapter]:
    """Read the LoRA of each transformer, with the frozen LoRAs added on which it was trained: it needs only the model then."""
    adapters = {name: read_adapter(place) for name, place in places.items()}
    if bases := own_adapters(request.config, request.run).model.base_loras:
        plain = request.config.model.model_settings() | {"base_loras": []}
        parts = transformers_of(meta_model(request.config.model.path, **plain).transformer)
        for base in bases:
            for name, lora in read_loras(base.path, parts, values=True).items():
                adapters[name] = adapters[name].plus(lora, base.strength)
    return adapters


def _places(weights: Path) -> dict[str, Path]:
    """Return the directories of the trained weights of each transformer, of which a second expert's is in the first one's."""
    return {_FIRST: weights} | ({_SECOND: weights / _SECOND} if (weights / _SECOND).is_dir() else {})


def _write_lora(request: Request, family: type[Family], adapters: Mapping[str, Adapter], folder: Path) -> list[str]:
    """Write a file for each transformer into the folder; return their names."""
    written = []
    for name, adapter in adapters.items():
        if request.form == "comfyui":
            file = folder / f"{request.run.name}{_NOISE[name] if len(adapters) > 1 else ''}.safetensors"
            layers = comfyui_layers(family, request.config.model.path, adapter.layers)
        else:
            file = folder / (FILE if name == _FIRST else f"{name}/{FILE}")
            layers = shared_layers(family, adapter.layers)
        for_diffusers = request.form == "diffusers" or is_shared(family, adapter.layers)
        file.parent.mkdir(exist_ok=True)
        write_layers(file, layers, adapter if for_diffusers else None)
        written.append(file.relative_to(folder).as_posix())
    return written
