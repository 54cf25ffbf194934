"""One reader for LoRAs of every layout: all of a file is used, with the right strength, or it is refused in one line.

diffusers, peft, ComfyUI, kohya, ai-toolkit, SimpleTuner, XLabs: they differ in what stands before the name of a layer, in the
names themselves (models.layouts), in the names of the two matrices, and in where they keep alpha.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import ModelMixin
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from torch import Tensor

from neighbor_grpo.errors import UserError, shown
from neighbor_grpo.models.adapter_files import SECOND, AdapterFile, find_adapter, find_second
from neighbor_grpo.models.errors import failing
from neighbor_grpo.models.layouts import Place, flat, linear_layers, places

# what trainers write before the name of a layer, one or several of them
_PREFIX = re.compile(r"(?:(?:base_model\.model|transformer|diffusion_model|model)\.|(?:lora_unet|lora_transformer|lycoris)_)*")
_MATRIX = re.compile(
    r"(?P<layer>.+?)(?:\.lora_|[._]lora\.|\.lora_linear_layer\.|\.(?=(?:down|up)\.))"
    r"(?P<side>A|B|down|up)(?:\.(?!bias)\w+)?\.weight"  # peft may add the name of the adapter
)
_ALPHA = re.compile(r"(?P<layer>.+)\.alpha")
_OTHERS = {  # adapters that are not two matrices a layer -> their keys
    "DoRA": r"\.(dora_scale|lora_magnitude_vector\b.*)",
    "LoKr": r"\.lokr_\w+.*",
    "LoHa": r"\.hada_\w+.*",
    "OFT": r"\.oft_\w+.*",
    "LoCon with a third matrix": r"\.lora_mid\.weight",
    "LoRA with differences of whole weights (diff)": r"\.(diff|diff_b)",
    "LoRA with biases": r"\.lora_\w+(\.\w+)*\.bias",
}
_ENCODERS = re.compile(r"(lora_te|text_encoder|text_encoders\.|te\d?[._]|conditioner)")


@dataclass(frozen=True, eq=False)
class Pair:
    """Hold the update of a linear layer's weight [out, in]:  alpha / r · up · down."""

    down: Tensor  # [r, in]
    up: Tensor  # [out, r]
    alpha: float

    @property
    def rank(self) -> int:
        """Return r."""
        return len(self.down)


Lora = dict[str, Pair]  # by the names of the layers in the transformer


def read_loras(source: str, parts: Mapping[str, ModelMixin], values: bool = False) -> dict[str, Lora]:
    """Read a LoRA for each transformer of a pipeline, by its name; that of a second expert is in the folder transformer_2.

    For transformers on the meta device the matrices have shapes and no values, unless `values` are wanted.  Raises UserError
    for what does not fit, is damaged, or has a part that nothing would use.
    """
    first = find_adapter(source)
    return {name: read_lora(find_second(first) if name == SECOND else first, part, values) for name, part in parts.items()}


def read_lora(file: AdapterFile, transformer: ModelMixin, values: bool = False) -> Lora:
    """Read a LoRA for a transformer, as `read_loras` does.  Raises UserError."""
    with failing(f"{file.name} is not a LoRA"):
        tensors = _tensors(file, values=values or transformer.device.type != "meta")
        _check_kind(file.name, tensors)
        settings, layers = file.settings(), linear_layers(transformer)
        known = places(transformer)
        parts: dict[str, _Parts] = {}
        unused = [key for key in tensors if not _sort(key, tensors[key], known, parts, file.name)]
        unused += [key for part in parts.values() if not part.whole for key in part.keys]
        _check_used(file.name, type(transformer).__name__, unused, tensors)
        lora: Lora = {}
        for part in parts.values():
            sizes = {layer: layers[layer].out_features for layer in part.place.layers}
            pairs = part.pairs(settings, sizes, layers[part.place.layers[0]].in_features, file.name)
            if twice := sorted(lora.keys() & pairs.keys()):
                raise UserError(f"{file.name} has two updates of {twice[0]}: remove the keys of one of them")
            lora |= pairs
        return lora


@dataclass(eq=False)
class _Parts:
    """Collect what a file has under one name."""

    place: Place
    keys: list[str] = field(default_factory=list)
    found: dict[str, Tensor] = field(default_factory=dict)  # "down", "up", "alpha"

    @property
    def whole(self) -> bool:
        return self.found.keys() >= {"down", "up"}

    def pairs(self, settings: Mapping[str, Any], sizes: Mapping[str, int], width: int, name: str) -> Lora:
        """Return the update of each layer that the name stands for.  sizes: their rows; width: their columns."""
        down, up, rows = self.found["down"], self.found["up"], sum(sizes.values())
        if down.ndim != 2 or up.ndim != 2 or down.shape[1] != width or up.shape[0] != rows or len(down) != up.shape[1]:
            raise UserError(
                f"{name} does not fit this model: {shown(self.keys[0], 200)} is of matrices {list(down.shape)} and "
                f"{list(up.shape)}, and the layer takes [r, {width}] and [{rows}, r]: choose a LoRA of this model"
            )
        for key, tensor in zip(self.keys, self.found.values(), strict=True):
            if not tensor.is_floating_point() and tensor.ndim:
                raise UserError(
                    f"{name}: {shown(key, 200)} is of {tensor.dtype}, not of floating point: write it again in 16 bits"
                )
            if not tensor.is_meta and not tensor.float().isfinite().all():
                raise UserError(f"{name}: {shown(key, 200)} is not finite: choose another checkpoint of it")
        if self.place.swapped and rows == 2 * width:
            up = torch.cat(up.chunk(2)[::-1])
        alphas = {layer: self._alpha(settings, layer, len(down), name) for layer in sizes}
        ups = up.split(list(sizes.values()))
        return {layer: Pair(down, own, alphas[layer]) for layer, own in zip(sizes, ups, strict=True)}

    def _alpha(self, settings: Mapping[str, Any], layer: str, rank: int, name: str) -> float:
        """Return alpha: of the file's key, or of its settings; without either the rank, as everywhere."""
        own = float(self.found["alpha"]) if "alpha" in self.found else None
        said = _setting(settings, layer, rank, name)
        if own is not None and said is not None and abs(own - said) > 1e-6 * abs(own):
            raise UserError(f"{name} says alpha = {own:g} for {layer} and {said:g} in its settings: remove one of them")
        alpha = next((value for value in (own, said) if value is not None), float(rank))
        if not 0 < alpha < float("inf"):
            raise UserError(f"{name} has alpha = {alpha:g} for {layer}: choose a LoRA that changes something")
        return alpha


def _setting(settings: Mapping[str, Any], layer: str, rank: int, name: str) -> float | None:
    """Return the alpha of a layer by peft's settings, as if the update were scaled by alpha / r; None without settings."""
    if "lora_alpha" not in settings:
        return None
    ranks, alphas = (by_layer(settings, key, layer) for key in ("rank_pattern", "alpha_pattern"))
    said = settings.get("r") if ranks is None else ranks
    if said != rank:
        raise UserError(f"{name} has rank {rank} for {layer} and {shown(said)} in its settings: use those that belong to it")
    alpha = float(settings["lora_alpha"] if alphas is None else alphas)
    return alpha * rank**0.5 if settings.get("use_rslora") else alpha


def by_layer(settings: Mapping[str, Any], key: str, layer: str) -> Any:
    """Return a layer's own value in one of peft's patterns, None without one."""
    own = settings.get(key) or {}
    return own.get(get_pattern_key(list(own), layer))


def _sort(key: str, tensor: Tensor, known: Mapping[str, Place], parts: dict[str, _Parts], name: str) -> bool:
    """Put a tensor to the others of its layer; return False for one that the model has no use for."""
    match = _MATRIX.fullmatch(key) or _ALPHA.fullmatch(key)
    if not match:
        return False
    layer = match["layer"].replace(".processor.", ".")  # of old attention processors
    spelled = next((s for s in (flat(layer), flat(layer[_end(layer) :])) if s in known), None)
    if spelled is None:
        return False
    side = match.groupdict().get("side", "alpha")
    side = {"A": "down", "B": "up"}.get(side, side)
    part = parts.setdefault(spelled, _Parts(known[spelled]))
    if side in part.found or (side == "alpha" and tensor.numel() != 1):
        raise UserError(f"{name} has two tensors for {shown(key, 200)}, or an alpha that is not one number: write it again")
    part.keys.append(key)
    part.found[side] = tensor
    return True


def _end(layer: str) -> int:
    """Return where the name of a layer begins behind the prefixes."""
    match = _PREFIX.match(layer)
    return match.end() if match else 0


def _tensors(file: AdapterFile, values: bool) -> dict[str, Tensor]:
    """Read the tensors of a file; without `values` those of several numbers on the meta device."""
    if file.weights.suffix == ".bin":
        found = torch.load(file.weights, map_location="cpu", weights_only=True)
        if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
            raise UserError(f"{file.name} does not hold tensors by name: give the LoRA itself, as .safetensors")
        return {str(key): tensor if values or tensor.numel() == 1 else tensor.to("meta") for key, tensor in found.items()}
    with safe_open(file.weights, "pt") as stored:
        keys: list[str] = list(stored.keys())
        shapes = {key: stored.get_slice(key).get_shape() for key in keys}
        return {
            key: stored.get_tensor(key) if values or not shapes[key] or shapes[key] == [1] else _shape(shapes[key])
            for key in keys
        }


def _shape(shape: list[int]) -> Tensor:
    return torch.empty(shape, device="meta")


def _check_kind(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError for a file without tensors, and for the keys of another kind of adapter."""
    if not tensors:
        raise UserError(f"{name} holds no tensors: give the file of a LoRA")
    for kind, pattern in _OTHERS.items():
        if found := [key for key in tensors if re.search(pattern + r"\Z", key)]:
            raise UserError(
                f"{name} is a {kind} ({_first(found, tensors)}), and only plain LoRAs are read: merge it into the model's "
                "weights, or choose another file"
            )


def _check_used(name: str, model: str, unused: list[str], tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError for keys that no layer uses."""
    if not unused:
        return
    encoders = sum(bool(_ENCODERS.match(key)) for key in unused)
    of = f", {encoders} of them of text encoders, which stay as they are" if encoders else ""
    raise UserError(
        f"{name} does not fit this {model}: no layer uses {_first(unused, tensors)}{of}: choose a LoRA of this model's "
        "transformer alone"
    )


def _first(keys: list[str], tensors: Mapping[str, Tensor]) -> str:
    """Return how many keys of a file these are, and the first of them."""
    names = ", ".join(shown(key, 120) for key in sorted(keys)[:3]) + (", ..." if len(keys) > 3 else "")
    return f"{len(keys)} of {len(tensors)} keys, {names}"
