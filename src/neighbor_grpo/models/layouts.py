"""The names of a transformer's linear layers: its own in diffusers, and those of the models' first publication.

ComfyUI, kohya, ai-toolkit and XLabs keep the published names, in which one layer often stands for several of diffusers, one
below the other.  diffusers' own converters are not used: they leave out without an error what they do not know (differences of
norms and biases, a second text encoder), and take FLUX.1 to be of its published size.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from diffusers import ModelMixin
from torch import nn

# Published name -> the layers of diffusers.  A line holds for a model that has all of its layers, N is the number of a block.
# * : of two halves, scale and shift, in the other order.
_STREAMS = """
double_blocks.N.img_attn.qkv      transformer_blocks.N.attn: to_q to_k to_v
double_blocks.N.txt_attn.qkv      transformer_blocks.N.attn: add_q_proj add_k_proj add_v_proj
double_blocks.N.img_attn.proj     transformer_blocks.N.attn: to_out.0
double_blocks.N.txt_attn.proj     transformer_blocks.N.attn: to_add_out
double_blocks.N.qkv_lora1         transformer_blocks.N.attn: to_q to_k to_v
double_blocks.N.qkv_lora2         transformer_blocks.N.attn: add_q_proj add_k_proj add_v_proj
double_blocks.N.proj_lora1        transformer_blocks.N.attn: to_out.0
double_blocks.N.proj_lora2        transformer_blocks.N.attn: to_add_out
double_blocks.N.img_mlp.0         transformer_blocks.N.ff: net.0.proj
double_blocks.N.img_mlp.2         transformer_blocks.N.ff: net.2
double_blocks.N.txt_mlp.0         transformer_blocks.N.ff_context: net.0.proj
double_blocks.N.txt_mlp.2         transformer_blocks.N.ff_context: net.2
double_blocks.N.img_mlp.0         transformer_blocks.N.ff: linear_in
double_blocks.N.img_mlp.2         transformer_blocks.N.ff: linear_out
double_blocks.N.txt_mlp.0         transformer_blocks.N.ff_context: linear_in
double_blocks.N.txt_mlp.2         transformer_blocks.N.ff_context: linear_out
double_blocks.N.img_mlp.fc1       transformer_blocks.N.ff: net.0.proj
double_blocks.N.img_mlp.fc2       transformer_blocks.N.ff: net.2
double_blocks.N.txt_mlp.fc1       transformer_blocks.N.ff_context: net.0.proj
double_blocks.N.txt_mlp.fc2       transformer_blocks.N.ff_context: net.2
double_blocks.N.img_mod.lin       transformer_blocks.N.norm1: linear
double_blocks.N.txt_mod.lin       transformer_blocks.N.norm1_context: linear
double_blocks.N.img_mod.linear    transformer_blocks.N.norm1: linear
double_blocks.N.txt_mod.linear    transformer_blocks.N.norm1_context: linear
single_blocks.N.linear1           single_transformer_blocks.N: attn.to_q attn.to_k attn.to_v proj_mlp
single_blocks.N.linear1           single_transformer_blocks.N.attn: to_qkv_mlp_proj
single_blocks.N.linear2           single_transformer_blocks.N: proj_out
single_blocks.N.linear2           single_transformer_blocks.N.attn: to_out
single_blocks.N.qkv               single_transformer_blocks.N.attn: to_q to_k to_v
single_blocks.N.proj              single_transformer_blocks.N: proj_out
single_blocks.N.modulation.lin    single_transformer_blocks.N.norm: linear
single_blocks.N.modulation.linear single_transformer_blocks.N.norm: linear
img_in                            x_embedder
txt_in                            context_embedder
time_in.in_layer                  time_text_embed.timestep_embedder: linear_1
time_in.out_layer                 time_text_embed.timestep_embedder: linear_2
vector_in.in_layer                time_text_embed.text_embedder: linear_1
vector_in.out_layer               time_text_embed.text_embedder: linear_2
guidance_in.in_layer              time_text_embed.guidance_embedder: linear_1
guidance_in.out_layer             time_text_embed.guidance_embedder: linear_2
time_in.in_layer                  time_guidance_embed.timestep_embedder: linear_1
time_in.out_layer                 time_guidance_embed.timestep_embedder: linear_2
guidance_in.in_layer              time_guidance_embed.guidance_embedder: linear_1
guidance_in.out_layer             time_guidance_embed.guidance_embedder: linear_2
time_in.mlp.0                     time_text_embed.timestep_embedder: linear_1
time_in.mlp.2                     time_text_embed.timestep_embedder: linear_2
guidance_in.mlp.0                 time_text_embed.guidance_embedder: linear_1
guidance_in.mlp.2                 time_text_embed.guidance_embedder: linear_2
double_stream_modulation_img.lin  double_stream_modulation_img: linear
double_stream_modulation_txt.lin  double_stream_modulation_txt: linear
single_stream_modulation.lin      single_stream_modulation: linear
final_layer.linear                proj_out
final_layer.adaLN_modulation.1    norm_out: linear *
txt_in.input_embedder             context_embedder: proj_in
txt_in.t_embedder.mlp.0           context_embedder.time_text_embed.timestep_embedder: linear_1
txt_in.t_embedder.mlp.2           context_embedder.time_text_embed.timestep_embedder: linear_2
txt_in.t_embedder.in_layer        context_embedder.time_text_embed.timestep_embedder: linear_1
txt_in.t_embedder.out_layer       context_embedder.time_text_embed.timestep_embedder: linear_2
txt_in.c_embedder.in_layer        context_embedder.time_text_embed.text_embedder: linear_1
txt_in.c_embedder.out_layer       context_embedder.time_text_embed.text_embedder: linear_2
txt_in.c_embedder.linear_1        context_embedder.time_text_embed.text_embedder: linear_1
txt_in.c_embedder.linear_2        context_embedder.time_text_embed.text_embedder: linear_2
txt_in.individual_token_refiner.blocks.N.self_attn.qkv context_embedder.token_refiner.refiner_blocks.N.attn: to_q to_k to_v
txt_in.individual_token_refiner.blocks.N.self_attn.proj context_embedder.token_refiner.refiner_blocks.N.attn: to_out.0
txt_in.individual_token_refiner.blocks.N.mlp.fc1 context_embedder.token_refiner.refiner_blocks.N.ff: net.0.proj
txt_in.individual_token_refiner.blocks.N.mlp.fc2 context_embedder.token_refiner.refiner_blocks.N.ff: net.2
txt_in.individual_token_refiner.blocks.N.mlp.0 context_embedder.token_refiner.refiner_blocks.N.ff: net.0.proj
txt_in.individual_token_refiner.blocks.N.mlp.2 context_embedder.token_refiner.refiner_blocks.N.ff: net.2
txt_in.individual_token_refiner.blocks.N.adaLN_modulation.1 context_embedder.token_refiner.refiner_blocks.N.norm_out: linear
"""  # FLUX.1, FLUX.2 and HunyuanVideo, also by XLabs
_SD3 = """
joint_blocks.N.x_block.attn.qkv           transformer_blocks.N.attn: to_q to_k to_v
joint_blocks.N.x_block.attn.proj          transformer_blocks.N.attn: to_out.0
joint_blocks.N.x_block.attn2.qkv          transformer_blocks.N.attn2: to_q to_k to_v
joint_blocks.N.x_block.attn2.proj         transformer_blocks.N.attn2: to_out.0
joint_blocks.N.x_block.mlp.fc1            transformer_blocks.N.ff: net.0.proj
joint_blocks.N.x_block.mlp.fc2            transformer_blocks.N.ff: net.2
joint_blocks.N.x_block.adaLN_modulation.1 transformer_blocks.N.norm1: linear
joint_blocks.N.context_block.attn.qkv     transformer_blocks.N.attn: add_q_proj add_k_proj add_v_proj
joint_blocks.N.context_block.attn.proj    transformer_blocks.N.attn: to_add_out
joint_blocks.N.context_block.mlp.fc1      transformer_blocks.N.ff_context: net.0.proj
joint_blocks.N.context_block.mlp.fc2      transformer_blocks.N.ff_context: net.2
joint_blocks.N.context_block.adaLN_modulation.1 transformer_blocks.N.norm1_context: linear *
t_embedder.mlp.0                          time_text_embed.timestep_embedder: linear_1
t_embedder.mlp.2                          time_text_embed.timestep_embedder: linear_2
y_embedder.mlp.0                          time_text_embed.text_embedder: linear_1
y_embedder.mlp.2                          time_text_embed.text_embedder: linear_2
final_layer.linear                        proj_out
final_layer.adaLN_modulation.1            norm_out: linear *
"""
_WAN = """
blocks.N.self_attn.q      blocks.N.attn1: to_q
blocks.N.self_attn.k      blocks.N.attn1: to_k
blocks.N.self_attn.v      blocks.N.attn1: to_v
blocks.N.self_attn.o      blocks.N.attn1: to_out.0
blocks.N.cross_attn.q     blocks.N.attn2: to_q
blocks.N.cross_attn.k     blocks.N.attn2: to_k
blocks.N.cross_attn.v     blocks.N.attn2: to_v
blocks.N.cross_attn.o     blocks.N.attn2: to_out.0
blocks.N.cross_attn.k_img blocks.N.attn2: add_k_proj
blocks.N.cross_attn.v_img blocks.N.attn2: add_v_proj
blocks.N.ffn.0            blocks.N.ffn: net.0.proj
blocks.N.ffn.2            blocks.N.ffn: net.2
time_embedding.0          condition_embedder.time_embedder: linear_1
time_embedding.2          condition_embedder.time_embedder: linear_2
time_projection.1         condition_embedder: time_proj
text_embedding.0          condition_embedder.text_embedder: linear_1
text_embedding.2          condition_embedder.text_embedder: linear_2
img_emb.proj.1            condition_embedder.image_embedder.ff: net.0.proj
img_emb.proj.3            condition_embedder.image_embedder.ff: net.2
head.head                 proj_out
"""
_Z_IMAGE = """
layers.N.attention.qkv          layers.N.attention: to_q to_k to_v
layers.N.attention.out          layers.N.attention: to_out.0
noise_refiner.N.attention.qkv   noise_refiner.N.attention: to_q to_k to_v
noise_refiner.N.attention.out   noise_refiner.N.attention: to_out.0
context_refiner.N.attention.qkv context_refiner.N.attention: to_q to_k to_v
context_refiner.N.attention.out context_refiner.N.attention: to_out.0
"""
_PUBLISHED = {
    "FluxTransformer2DModel": _STREAMS,
    "Flux2Transformer2DModel": _STREAMS,
    "HunyuanVideoTransformer3DModel": _STREAMS,
    "SD3Transformer2DModel": _SD3,
    "WanTransformer3DModel": _WAN,
    "ZImageTransformer2DModel": _Z_IMAGE,
}
_NUMBER = re.compile(r"\bN\b")


@dataclass(frozen=True)
class Place:
    """Hold the layers that a name stands for, whose rows lie one below the other."""

    layers: tuple[str, ...]
    swapped: bool = False  # the two halves of the rows are in the other order


def linear_layers(transformer: ModelMixin) -> dict[str, nn.Linear]:
    """Return the linear layers by name, also below a LoRA; not those of the LoRA."""
    return {
        name.removesuffix(".base_layer"): module
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    }


def flat(name: str) -> str:
    """Return a layer's name as kohya writes it: both spellings are the same then."""
    return name.replace(".", "_")


def places(transformer: ModelMixin) -> dict[str, Place]:
    """Return what each flat name stands for."""
    layers = linear_layers(transformer)
    known = {flat(name): place for name, place in published(transformer)}
    known |= {flat(layer.removesuffix(".0")): Place((layer,)) for layer in layers if layer.endswith("to_out.0")}
    return known | {flat(layer): Place((layer,)) for layer in layers}


def published(transformer: ModelMixin) -> Iterator[tuple[str, Place]]:
    """Yield the published names of layers, those whose layers are all there."""
    layers = linear_layers(transformer)
    blocks = 1 + max((int(number) for layer in layers for number in re.findall(r"\.(\d+)\.", layer)), default=0)
    for line in _PUBLISHED.get(type(transformer).__name__, "").strip().splitlines():
        name, start, *ends = line.split()
        swapped, ends = ends[-1:] == ["*"], [end for end in ends if end != "*"]
        names = [start.replace(":", f".{end}") for end in ends] or [start]
        for n in range(blocks if _NUMBER.search(line) else 1):
            own = tuple(_NUMBER.sub(str(n), one) for one in names)
            if all(one in layers for one in own):
                yield _NUMBER.sub(str(n), name), Place(own, swapped)
