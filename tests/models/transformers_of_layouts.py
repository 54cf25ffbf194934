"""Random-weight transformers of the true layout, smaller than those of any pipeline here, and random LoRAs on them."""

import torch
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel, SD3Transformer2DModel, WanTransformer3DModel

from neighbor_grpo.models.adapters import Pair
from neighbor_grpo.models.layouts import linear_layers

ROPE = {"attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 12}
BUILD = {
    "flux": lambda: FluxTransformer2DModel(
        in_channels=8, num_layers=2, num_single_layers=2, pooled_projection_dim=10, axes_dims_rope=(2, 2, 4), **ROPE
    ),
    "sd3": lambda: SD3Transformer2DModel(
        sample_size=8, in_channels=4, num_layers=2, caption_projection_dim=16, pooled_projection_dim=10, pos_embed_max_size=8,
        dual_attention_layers=(0,), qk_norm="rms_norm", **ROPE,
    ),
    "wan": lambda: WanTransformer3DModel(
        attention_head_dim=12, num_attention_heads=1, in_channels=4, out_channels=4, text_dim=10, freq_dim=8, ffn_dim=20,
        num_layers=2, image_dim=6, added_kv_proj_dim=12,
    ),
    "flux2": lambda: Flux2Transformer2DModel(
        in_channels=8, num_layers=2, num_single_layers=2, timestep_guidance_channels=8, mlp_ratio=3.0,
        axes_dims_rope=(2, 2, 2, 2), **ROPE,
    ),
}  # fmt: skip


def random_lora(transformer, names, ranks=(3,)) -> dict[str, Pair]:
    """Return a LoRA of alpha = r on layers, ranks in turn."""
    layers, generator = linear_layers(transformer), torch.Generator().manual_seed(1)

    def pair(layer, rank):
        down = torch.randn(rank, layer.in_features, generator=generator)
        return Pair(down, torch.randn(layer.out_features, rank, generator=generator), float(rank))

    return {name: pair(layers[name], ranks[n % len(ranks)]) for n, name in enumerate(names)}


def updates(lora) -> dict[str, torch.Tensor]:
    """Return what a LoRA adds to the weights."""
    return {name: pair.alpha / pair.rank * pair.up.float() @ pair.down.float() for name, pair in lora.items()}


def same(one, other, tolerance=1e-6) -> bool:
    """Return whether two LoRAs change the same layers in the same way."""
    one, other = updates(one), updates(other)
    return one.keys() == other.keys() and all(torch.allclose(one[k], other[k], rtol=0, atol=tolerance) for k in one)
