"""The names by which ComfyUI knows the layers of each family.

Most families have diffusers' names there.  Wan and HunyuanVideo have those of the original models, and what is one layer in
HunyuanVideo, queries, keys, values and the first layer of the MLP, is up to four in diffusers.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from diffusers import HunyuanVideoTransformer3DModel

from neighbor_grpo.errors import UserError
from neighbor_grpo.models.exchange import Layers, Matrices
from neighbor_grpo.models.family import Family
from neighbor_grpo.models.flux2 import Flux2
from neighbor_grpo.models.hunyuan_video import HunyuanVideo
from neighbor_grpo.models.wan import WanFamily

Rules = Mapping[str, str]  # pattern of a layer's whole name in diffusers -> its name in ComfyUI; group "part": which rows of it

_WAN: Rules = {
    r"blocks\.(\d+)\.attn1\.to_([qkv])": r"blocks.\1.self_attn.\2",
    r"blocks\.(\d+)\.attn1\.to_out\.0": r"blocks.\1.self_attn.o",
    r"blocks\.(\d+)\.attn2\.to_([qkv])": r"blocks.\1.cross_attn.\2",
    r"blocks\.(\d+)\.attn2\.to_out\.0": r"blocks.\1.cross_attn.o",
    r"blocks\.(\d+)\.attn2\.add_([kv])_proj": r"blocks.\1.cross_attn.\2_img",
    r"blocks\.(\d+)\.ffn\.net\.0\.proj": r"blocks.\1.ffn.0",
    r"blocks\.(\d+)\.ffn\.net\.2": r"blocks.\1.ffn.2",
    r"condition_embedder\.(text|time)_embedder\.linear_1": r"\1_embedding.0",
    r"condition_embedder\.(text|time)_embedder\.linear_2": r"\1_embedding.2",
    r"condition_embedder\.time_proj": "time_projection.1",
    r"condition_embedder\.image_embedder\.ff\.net\.0\.proj": "img_emb.proj.1",
    r"condition_embedder\.image_embedder\.ff\.net\.2": "img_emb.proj.3",
    r"proj_out": "head.head",
}
_DOUBLE, _SINGLE = r"transformer_blocks\.(\d+)\.", r"single_transformer_blocks\.(\d+)\."
_REFINER, _REFINED = r"context_embedder\.token_refiner\.refiner_blocks\.(\d+)\.", r"txt_in.individual_token_refiner.blocks.\1."
_HUNYUAN_VIDEO: Rules = {
    _DOUBLE + r"attn\.to_(?P<part>[qkv])": r"double_blocks.\1.img_attn.qkv",
    _DOUBLE + r"attn\.add_(?P<part>[qkv])_proj": r"double_blocks.\1.txt_attn.qkv",
    _DOUBLE + r"attn\.to_out\.0": r"double_blocks.\1.img_attn.proj",
    _DOUBLE + r"attn\.to_add_out": r"double_blocks.\1.txt_attn.proj",
    _DOUBLE + r"norm1\.linear": r"double_blocks.\1.img_mod.lin",
    _DOUBLE + r"norm1_context\.linear": r"double_blocks.\1.txt_mod.lin",
    _DOUBLE + r"ff\.net\.0\.proj": r"double_blocks.\1.img_mlp.0",
    _DOUBLE + r"ff\.net\.2": r"double_blocks.\1.img_mlp.2",
    _DOUBLE + r"ff_context\.net\.0\.proj": r"double_blocks.\1.txt_mlp.0",
    _DOUBLE + r"ff_context\.net\.2": r"double_blocks.\1.txt_mlp.2",
    _SINGLE + r"(?:attn\.to|proj)_(?P<part>q|k|v|mlp)": r"single_blocks.\1.linear1",
    _SINGLE + r"proj_out": r"single_blocks.\1.linear2",
    _SINGLE + r"norm\.linear": r"single_blocks.\1.modulation.lin",
    _REFINER + r"attn\.to_(?P<part>[qkv])": _REFINED + "self_attn.qkv",
    _REFINER + r"attn\.to_out\.0": _REFINED + "self_attn.proj",
    _REFINER + r"ff\.net\.0\.proj": _REFINED + "mlp.0",
    _REFINER + r"ff\.net\.2": _REFINED + "mlp.2",
    _REFINER + r"norm_out\.linear": _REFINED + "adaLN_modulation.1",
    r"context_embedder\.proj_in": "txt_in.input_embedder",
    r"context_embedder\.time_text_embed\.timestep_embedder\.linear_1": "txt_in.t_embedder.in_layer",
    r"context_embedder\.time_text_embed\.timestep_embedder\.linear_2": "txt_in.t_embedder.out_layer",
    r"context_embedder\.time_text_embed\.text_embedder\.linear_1": "txt_in.c_embedder.in_layer",
    r"context_embedder\.time_text_embed\.text_embedder\.linear_2": "txt_in.c_embedder.out_layer",
    r"time_text_embed\.timestep_embedder\.linear_1": "time_in.in_layer",
    r"time_text_embed\.timestep_embedder\.linear_2": "time_in.out_layer",
    r"time_text_embed\.text_embedder\.linear_1": "vector_in.in_layer",
    r"time_text_embed\.text_embedder\.linear_2": "vector_in.out_layer",
    r"time_text_embed\.guidance_embedder\.linear_1": "guidance_in.in_layer",
    r"time_text_embed\.guidance_embedder\.linear_2": "guidance_in.out_layer",
    r"proj_out": "final_layer.linear",
}
_UNKNOWN = re.compile(r"time_guidance_embed\.|.*_stream_modulation")  # layers of FLUX.2 that it knows by no name of diffusers


def is_shared(family: type[Family], layers: Iterable[str]) -> bool:
    """Return whether diffusers and ComfyUI read a LoRA with these layers from the same file."""
    return not issubclass(family, HunyuanVideo) and not (issubclass(family, Flux2) and any(map(_UNKNOWN.match, layers)))


def shared_layers(family: type[Family], layers: Layers) -> Layers:
    """Name the layers of a LoRA as diffusers reads them, and ComfyUI too where `is_shared`."""
    if issubclass(family, WanFamily):
        return {f"diffusion_model.{_renamed(layer, _WAN)[0]}": matrices for layer, matrices in layers.items()}
    return {f"transformer.{layer}": matrices for layer, matrices in layers.items()}


def comfyui_layers(family: type[Family], path: str, layers: Layers) -> Layers:
    """Name the layers of a LoRA as ComfyUI does; `path`: of the model.  Raises UserError for a layer that it does not know."""
    if issubclass(family, HunyuanVideo):
        return _joined(layers, path)
    if issubclass(family, Flux2) and (unknown := next(filter(_UNKNOWN.match, layers), None)):
        raise _unknown(unknown)
    return shared_layers(family, layers)


def _renamed(layer: str, rules: Rules) -> tuple[str, str | None]:
    """Return a layer's name in ComfyUI, and which part of that layer it is.  Raises UserError."""
    for pattern, name in rules.items():
        if match := re.fullmatch(pattern, layer):
            return match.expand(name), match.groupdict().get("part")
    raise _unknown(layer)


def _unknown(layer: str) -> UserError:
    return UserError(f"ComfyUI does not know the layer {layer}: choose --format diffusers, or other model.lora.targets")


def _joined(layers: Layers, path: str) -> Layers:
    """Put together what HunyuanVideo has in one layer."""
    parts: dict[str, dict[str | None, Matrices]] = {}
    for layer, matrices in layers.items():
        name, part = _renamed(layer, _HUNYUAN_VIDEO)
        parts.setdefault(name, {})[part] = matrices
    ratio = HunyuanVideoTransformer3DModel.load_config(path, subfolder="transformer")["mlp_ratio"]
    joined = {}
    for name, own in parts.items():
        rows = {"q": 1.0, "k": 1.0, "v": 1.0} | ({"mlp": ratio} if name.endswith("linear1") else {})
        joined[f"diffusion_model.{name}"] = own[None] if None in own else _stack(own, rows)
    return joined


def _stack(parts: Mapping[str | None, Matrices], rows: Mapping[str, float]) -> Matrices:
    """Make one update of those of some of a layer's rows; `rows`: of every part, as a multiple of the layer's width.

    The matrices A are stacked, and each B stands in the rows of its part and the columns of its A; the rest is zero.
    """
    first = next(iter(parts.values()))
    width = first.down.shape[1]
    down = torch.cat([parts[part].down for part in rows if part in parts])
    up = first.up.new_zeros(sum(round(width * share) for share in rows.values()), len(down))
    row = column = 0
    for part, share in rows.items():
        if part in parts:
            own = parts[part]
            up[row : row + len(own.up), column : column + own.rank] = own.up
            column += own.rank
        row += round(width * share)
    return Matrices(down, up)
