"""Another transformer in the place of a pipeline's: a directory, a folder of a repository, or a single file.

A single file has the architecture of the pipeline's own transformer, with the names of diffusers or those of its authors;
diffusers reads both.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers import GGUFQuantizationConfig, ModelMixin
from safetensors.torch import load_file
from torch import Tensor, nn

from neighbor_grpo.errors import UserError, shown
from neighbor_grpo.files.text import expand_home
from neighbor_grpo.models.directory import INDEX, PICKLES, check_component, check_file, read_header, read_object
from neighbor_grpo.models.errors import failing
from neighbor_grpo.models.frozen import Frozen, stored
from neighbor_grpo.models.quantization import quantize_loaded
from neighbor_grpo.models.sources import READ, Source

GGUF, SAFETENSORS = ".gguf", ".safetensors"
_INPUTS = (  # settings of transformers that describe what the other components give them
    "in_channels", "out_channels", "patch_size", "joint_attention_dim", "pooled_projection_dim", "text_dim", "text_embed_dim",
    "cap_feat_dim", "image_dim",
)  # fmt: skip
_FLOATS = {"F64", "F32", "F16", "BF16"}
_EIGHT = {"F8_E4M3", "F8_E5M2"}
_SCALES = (".scale_weight", ".weight_scale")  # of a layer's weights, in files of ComfyUI
_BESIDE = (".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8")  # what such files hold beside weights and scales
_ADDED = (*_SCALES, *_BESIDE)


@dataclass(frozen=True)
class Other:
    """Hold where another transformer is: a folder with its configuration, or a file without one."""

    source: Source
    folder: str
    file: str | None

    @classmethod
    def of(cls, text: str) -> "Other":
        """Find what `model.transformer` names.  Raises UserError."""
        path = Path(expand_home(text))
        if path.is_file():
            return cls(Source(text, None, path.parent), "", _known(path.name))
        if path.is_dir():
            return cls(Source(text, None, path), "transformer" if (path / INDEX).is_file() else "", None)
        owner, name, *inside = text.split("/") if text.count("/") else (text, "")
        if not owner.strip(".~") or not name:
            raise UserError(f"model.transformer={shown(text, 200)}: no such file or directory: check the path")
        source = Source(f"{owner}/{name}", None, None)
        if inside and Path(inside[-1]).suffix in (SAFETENSORS, GGUF, *PICKLES):
            return cls(source, "/".join(inside[:-1]), _known(inside[-1]))
        return cls(source, "/".join(inside), None)

    def fetch(self, weights: bool, kind: type[ModelMixin]) -> "Found":
        """Return the transformer, its files on this machine; `kind`: the class that the pipeline has.

        weights: with its weights; else a folder's may be missing.  Raises UserError where it is of another class.
        """
        if self.file:
            return self._fetch_file(weights, f"{self.folder}/{self.file}" if self.folder else self.file)
        place = self.source.fetch(READ)
        folder = self.folder or ("transformer" if (place / INDEX).is_file() else "")
        if not (place / folder).is_dir():
            raise UserError(f"model.transformer: {shown(self.source.name)} has no folder {folder}: check the name")
        if weights:
            self.source.fetch_weights({folder: kind.__name__}, None)
        check_component(place / folder, weights)
        config = read_object(place / folder / "config.json")
        if (found := config.get("_class_name")) != kind.__name__:
            raise UserError(f"model.transformer is a {shown(found)[1:-1]}, and this pipeline has a {kind.__name__}: choose one")
        return Found(place / folder, config, stored(str(place / folder), config))

    def _fetch_file(self, weights: bool, path: str) -> "Found":
        """Return a single file; without weights one of a repository is not downloaded, and only GGUF is known as frozen."""
        place = self.source.fetch([path if weights else INDEX])
        if not self.source.has(place, path):
            raise UserError(f"model.transformer: {shown(self.source.name)} has no file {path}: check the name")
        file = place / path
        return Found(file, None, _of_file(file) if file.is_file() else _of_name(file, self.source.size(path)))


@dataclass(frozen=True)
class Found:
    """Hold a transformer's place on this machine, its configuration (None: the pipeline's), and how it is stored."""

    place: Path
    config: Mapping[str, Any] | None
    frozen: Frozen | None

    def check_inputs(self, own: Mapping[str, Any]) -> None:
        """Raise UserError where it takes other inputs than the pipeline's own transformer, by their configurations."""
        for key in _INPUTS:
            if self.config is not None and self.config.get(key) != own.get(key):
                raise UserError(
                    f"model.transformer has {key}={self.config.get(key)}, and this pipeline gives it {own.get(key)}: choose a "
                    "transformer of this pipeline, or another model.path"
                )

    def check(self, bare: nn.Module) -> None:
        """Raise UserError where a single file with diffusers' names has other weights than `bare`, by name and shape."""
        if self.config is not None or self.place.suffix != SAFETENSORS or not self.place.is_file():
            return
        header = {name: tensor for name, tensor in _tensors(self.place).items() if not name.endswith(_ADDED)}
        expected = {name: list(weight.shape) for name, weight in bare.state_dict().items()}
        lacking, more = sorted(expected.keys() - header.keys()), sorted(header.keys() - expected.keys())
        if lacking and more:  # the names of its authors: diffusers renames them when it is loaded
            return
        _refuse(self.place, bare, lacking, "lacks")
        _refuse(self.place, bare, more, "has too many:")
        other = [name for name in expected if header[name].get("shape") != expected[name]]
        _refuse(self.place, bare, other, "has, of another shape,")

    def load(self, kind: type[ModelMixin], pipeline: Path, dtype: torch.dtype, quantized: Any) -> ModelMixin:
        """Load a single file; `pipeline`: the directory whose transformer's configuration is that of the file.

        quantized: diffusers' configuration of model.quantize, or None.  Raises UserError where names or shapes are others.
        """
        with torch.device("meta"):
            self.check(kind.from_config(kind.load_config(pipeline, subfolder="transformer")))
        options: dict[str, Any] = {"config": str(pipeline), "subfolder": "transformer", "dtype": dtype}
        weights: str | dict[str, Tensor] = str(self.place)
        if self.place.suffix == GGUF:
            options["quantization_config"] = GGUFQuantizationConfig(compute_dtype=dtype)
        elif self.frozen:
            weights = unscaled(load_file(self.place), dtype)
        what = f"model.transformer={shown(str(self.place), 200)} does not fit a {kind.__name__}"
        with failing(what), _all_used(self.place):
            try:
                model = kind.from_single_file(weights, **options)
            except NotImplementedError as error:  # torch's, for a weight that has no values yet
                raise ValueError("weights are missing") from error
        _refuse(self.place, model, [name for name, weight in model.named_parameters() if weight.is_meta], "lacks")
        if quantized:
            quantize_loaded(model, quantized)
        return model


def _refuse(file: Path, model: nn.Module, names: list[str], fault: str) -> None:
    """Raise UserError if there are names of weights with a fault."""
    if names:
        raise UserError(
            f"{file} {fault} {len(names)} weights of this pipeline's {type(model).__name__}, for instance {names[0][:200]}: "
            "give a file of its architecture, or choose another model.path"
        )


def unscaled(weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return weights in `dtype`, those in 8 bits times the scale of their layer, if the file has one.

    Raises UserError for a layer in another format than fp8.
    """
    whole = {name: weight for name, weight in weights.items() if not name.endswith(_ADDED)}
    for name, scale in weights.items():
        if name.endswith(".comfy_quant"):
            form = json.loads(bytes(scale.tolist())).get("format")
            if not str(form).startswith("float8"):
                raise UserError(f"{name} says {shown(form)}, which is not read: give a file in fp8, 16 or 32 bits, or GGUF")
        if name.endswith(_SCALES):
            layer = f"{name.rpartition('.')[0]}.weight"
            rows = scale.float().reshape(-1, *(1,) * (whole[layer].ndim - 1)) if scale.numel() > 1 else scale.float()
            whole[layer] = whole[layer].float() * rows
    return {name: weight.to(dtype) for name, weight in whole.items()}


def _known(name: str) -> str:
    """Return the name of a file that can be read.  Raises UserError for another kind."""
    if not name.endswith((SAFETENSORS, GGUF)):
        raise UserError(f"model.transformer: {shown(name)} is neither {SAFETENSORS} nor {GGUF}: convert it to {SAFETENSORS}")
    return name


def _tensors(file: Path) -> dict[str, Any]:
    """Return the header of a .safetensors file without its metadata.  Raises UserError for a damaged file."""
    check_file(file)
    return {name: tensor for name, tensor in read_header(file).items() if name != "__metadata__"}


def _of_file(file: Path) -> Frozen | None:
    """Return how the weights of a file are stored; None: in 16 or 32 bits.  Raises UserError for what is not read."""
    if file.suffix == GGUF:
        with file.open("rb") as opened:
            if opened.read(4) != b"GGUF":
                raise UserError(f"{file} is not a GGUF file: download it again, after git lfs install if it is a pointer")
        return _of_name(file, file.stat().st_size)
    types = {str(tensor.get("dtype")) for name, tensor in _tensors(file).items() if not name.endswith(_BESIDE)}
    if others := sorted(types - _FLOATS - _EIGHT):
        raise UserError(
            f"{file} has weights in {', '.join(others)}, which is not read: give one in fp8, 16 or 32 bits, or GGUF"
        )
    return Frozen("a file in fp8", None) if types & _EIGHT else None


def _of_name(file: Path, size: int) -> Frozen | None:
    """Return how the weights of a file of so many bytes are stored, as far as its name says."""
    if file.suffix != GGUF:
        return None
    if not find_spec("gguf"):
        raise UserError("model.transformer: a .gguf file needs the package gguf: pip install 'neighbor-grpo[lean]'")
    return Frozen("a GGUF file", "gguf", size)


@contextmanager
def _all_used(file: Path) -> Iterator[None]:
    """Raise UserError where diffusers leaves weights of a file out, which it only logs."""

    class Refuse(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "not used" in (text := record.getMessage()):
                raise UserError(
                    f"{shown(str(file), 200)} has weights that this transformer lacks: {text.partition('[')[2][:200]}"
                )

    logger, handler = logging.getLogger("diffusers.loaders.single_file_model"), Refuse()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)  # whatever the environment says
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
