"""How other programs read a LoRA, restated from their documentation and what they do: which layers, and how strongly.

None of them reads the metadata, and none of these files has an alpha: each adds B A.
"""

import re

import torch
from diffusers.loaders import single_file_utils
from torch import Tensor

Pairs = dict[str, tuple[Tensor, Tensor]]  # A [r, in] and B [out, r] by the name of the layer
_ATTENTION = r"attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)"
_EMBEDDERS = r"time_text_embed\.(timestep|text|guidance)_embedder\.linear_[12]"

# ---------------------------------------------------------------- ComfyUI

# Layers of diffusers' names, after "transformer.", that its key maps of these models hold.
_BY_DIFFUSERS_NAME = {
    "FluxPipeline": (
        rf"transformer_blocks\.\d+\.({_ATTENTION}|norm1(_context)?\.linear|ff(_context)?\.net\.(0\.proj|2))",
        r"single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_mlp|proj_out|norm\.linear)",
        rf"x_embedder|context_embedder|proj_out|norm_out\.linear|{_EMBEDDERS}",
    ),
    "Flux2Pipeline": (
        rf"transformer_blocks\.\d+\.({_ATTENTION}|ff(_context)?\.linear_(in|out))",
        r"single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)",
        r"x_embedder|context_embedder|proj_out|norm_out\.linear",
    ),
    "StableDiffusion3Pipeline": (
        rf"transformer_blocks\.\d+\.({_ATTENTION}|attn2\.(to_[qkv]|to_out\.0)|norm1(_context)?\.linear)",
        r"transformer_blocks\.\d+\.ff(_context)?\.net\.(0\.proj|2)",
        rf"context_embedder|proj_out|norm_out\.linear|{_EMBEDDERS}",
    ),
    "QwenImagePipeline": (
        rf"transformer_blocks\.\d+\.({_ATTENTION}|(img|txt)_mod\.1|(img|txt)_mlp\.net\.(0\.proj|2))",
        rf"img_in|txt_in|proj_out|norm_out\.linear|{_EMBEDDERS}",
    ),
    "ZImagePipeline": (
        r"(layers|noise_refiner|context_refiner)\.\d+\.(attention\.(to_[qkv]|to_out\.0)|feed_forward\.w[123]|adaLN_modulation\.0)",
        r"all_final_layer\.2-1\.(linear|adaLN_modulation\.1)|all_x_embedder\.2-1|cap_embedder\.1|t_embedder\.mlp\.[02]",
    ),
}
_BY_DIFFUSERS_NAME["Flux2KleinPipeline"] = _BY_DIFFUSERS_NAME["Flux2Pipeline"]
# Its own layers, which it knows by their names after "diffusion_model.", whatever the model.
_BY_OWN_NAME = {
    "WanPipeline": (
        r"blocks\.\d+\.(self_attn\.[qkvo]|cross_attn\.([qkvo]|[kv]_img)|ffn\.[02])",
        r"(text|time)_embedding\.[02]|time_projection\.1|img_emb\.proj\.[13]|head\.head",
    ),
    "HunyuanVideoPipeline": (
        r"double_blocks\.\d+\.(img|txt)_(attn\.(qkv|proj)|mlp\.[02]|mod\.lin)",
        r"single_blocks\.\d+\.(linear[12]|modulation\.lin)",
        r"txt_in\.individual_token_refiner\.blocks\.\d+\.(self_attn\.(qkv|proj)|mlp\.[02]|adaLN_modulation\.1)",
        r"txt_in\.(input_embedder|[tc]_embedder\.(in|out)_layer)|(time|vector|guidance)_in\.(in|out)_layer|final_layer\.linear",
    ),
}
_BY_OWN_NAME["WanImageToVideoPipeline"] = _BY_OWN_NAME["WanPipeline"]
# How it renames the layers of HunyuanVideo's checkpoint.
_HUNYUAN_VIDEO = (
    ("_attn.qkv.", "_attn_qkv."),
    ("_attn.proj.", "_attn_proj."),
    ("_mod.lin.", "_mod.linear."),
    (".modulation.lin.", ".modulation.linear."),
    ("mlp.0.", "mlp.fc1."),
    ("mlp.2.", "mlp.fc2."),
    ("txt_in.t_embedder.in_layer.", "txt_in.t_embedder.mlp.0."),
    ("txt_in.t_embedder.out_layer.", "txt_in.t_embedder.mlp.2."),
    ("txt_in.c_embedder.in_layer.", "txt_in.c_embedder.linear_1."),
    ("txt_in.c_embedder.out_layer.", "txt_in.c_embedder.linear_2."),
    ("time_in.in_layer.", "time_in.mlp.0."),
    ("time_in.out_layer.", "time_in.mlp.2."),
    ("guidance_in.in_layer.", "guidance_in.mlp.0."),
    ("guidance_in.out_layer.", "guidance_in.mlp.2."),
)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def comfyui_knows(pipeline: str, layer: str) -> bool:
    """Whether it has a name for a layer of diffusers, in a family whose layers it knows by those names."""
    return matches(layer, _BY_DIFFUSERS_NAME[pipeline])


def comfyui(pipeline: str, pairs: Pairs, probe) -> dict[str, Tensor]:
    """What its updates of the weights make of `probe(inputs)`, by diffusers' names of the layers; all must be recognized."""
    if pipeline in _BY_DIFFUSERS_NAME:
        layers = {name.removeprefix("transformer."): pair for name, pair in pairs.items() if name.startswith("transformer.")}
        assert len(layers) == len(pairs) and all(comfyui_knows(pipeline, layer) for layer in layers)
        return {layer: update(pair, probe) for layer, pair in layers.items()}
    own = {name.removeprefix("diffusion_model."): pair for name, pair in pairs.items() if name.startswith("diffusion_model.")}
    assert len(own) == len(pairs) and all(matches(name, _BY_OWN_NAME[pipeline]) for name in own)
    checkpoint = {f"{name}.weight": update(pair, probe)[:, None] for name, pair in own.items()}
    if pipeline == "HunyuanVideoPipeline":
        for theirs, original in _HUNYUAN_VIDEO:
            checkpoint = {name.replace(theirs, original): weight for name, weight in checkpoint.items()}
        found = single_file_utils.convert_hunyuan_video_transformer_to_diffusers(checkpoint)
    else:
        found = single_file_utils.convert_wan_transformer_to_diffusers(checkpoint)
    return {name.removesuffix(".weight"): weight[:, 0] for name, weight in found.items()}


def update(pair: tuple[Tensor, Tensor], probe) -> Tensor:
    down, up = pair
    return up @ (down @ probe(down.shape[1]))


# ---------------------------------------------------------------- InvokeAI

_WAN = r"(diffusion_model|transformer)\.blocks\.\d+\."
_WAN_RENAMED = (
    ("cross_attn.", "attn2."), ("self_attn.", "attn1."), (".o.", ".to_out.0."), (".q.", ".to_q."), (".k.", ".to_k."),
    (".v.", ".to_v."), ("ffn.0.", "ffn.net.0.proj."), ("ffn.2.", "ffn.net.2."),
)  # fmt: skip
INVOKEAI = {
    "FluxPipeline": "flux", "Flux2Pipeline": "flux2", "Flux2KleinPipeline": "flux2", "QwenImagePipeline": "qwen-image",
    "ZImagePipeline": "z-image", "WanPipeline": "wan", "WanImageToVideoPipeline": "wan",
}  # fmt: skip


def invokeai_base(keys: set[str]) -> set[str]:
    """The base models that it takes a file for, by its keys; it wants one."""
    starts = lambda *prefixes: any(key.startswith(prefixes) for key in keys)  # noqa: E731
    assert all(key.endswith((".lora_A.weight", ".lora_B.weight")) for key in keys)  # an alpha would make it no FLUX
    flux1 = {f"transformer.single_transformer_blocks.0.attn.to_q.lora_{half}.weight" for half in "AB"}
    flux1 |= {f"transformer.transformer_blocks.0.attn.add_q_proj.lora_{half}.weight" for half in "AB"}
    fused = starts("transformer.") and any("to_qkv_mlp_proj" in key or "ff.linear_in" in key for key in keys)
    single = starts("transformer.single_transformer_blocks.", "single_transformer_blocks.")
    wan = any(re.match(_WAN + r"(attn[12]\.|ffn\.net\.|(self|cross)_attn\.[qkvo]\.|ffn\.\d+\.)", key) for key in keys)
    foreign = any(re.search(r"(^|\.)transformer_blocks\.\d+\.|(double|single)(_transformer)?_blocks", key) for key in keys)
    found = {
        "flux": flux1 <= keys and not fused,
        "flux2": fused,
        "qwen-image": starts("transformer.transformer_blocks.") and not single,
        "z-image": starts("transformer.layers.", "diffusion_model.layers."),
        "wan": wan and not foreign,
    }
    return {base for base, yes in found.items() if yes}


def invokeai(base: str, pairs: Pairs, probe) -> dict[str, Tensor]:
    """What its updates make of `probe(inputs)`, by diffusers' names of the layers."""
    if base == "flux":  # queries, keys and values of a double block are one layer there: all or none
        for block in {
            re.sub(r"(to_[qkv]|add_[qkv]_proj)$", "", n) for n in pairs if re.search(r"\.transformer_blocks.*_[qkv]", n)
        }:
            for three in (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")):
                assert len({block + one for one in three} & pairs.keys()) in (0, 3)
    found = {}
    for name, pair in pairs.items():
        layer = re.sub(r"^(transformer|diffusion_model)\.", "", name)
        if base == "wan":
            layer += "."
            for theirs, renamed in _WAN_RENAMED:
                layer = layer.replace(theirs, renamed)
            layer = layer.rstrip(".")
        found[layer] = update(pair, probe)
    return found


def probes(seed: int = 0):
    """A function that returns the same random input for the same number of features."""
    known: dict[int, Tensor] = {}

    def probe(features: int) -> Tensor:
        if features not in known:
            known[features] = torch.randn(features, generator=torch.Generator().manual_seed(seed + features))
        return known[features]

    return probe
