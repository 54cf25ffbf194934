"""The linear layers of published transformers, in full size, from their configurations alone."""

from functools import cache

import diffusers
import torch

LAYOUTS = {  # name -> class of the pipeline, of the transformer, and its configuration
    "FLUX.1-dev": ("FluxPipeline", "FluxTransformer2DModel", {"guidance_embeds": True}),
    "FLUX.2-dev": ("Flux2Pipeline", "Flux2Transformer2DModel", {}),
    "FLUX.2-klein-4B": (
        "Flux2KleinPipeline",
        "Flux2Transformer2DModel",
        {
            "num_layers": 5,
            "num_single_layers": 20,
            "num_attention_heads": 24,
            "joint_attention_dim": 7680,
            "guidance_embeds": False,
        },
    ),
    "SD3.5-medium": (
        "StableDiffusion3Pipeline",
        "SD3Transformer2DModel",
        {
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
            "qk_norm": "rms_norm",
        },
    ),
    "Qwen-Image": ("QwenImagePipeline", "QwenImageTransformer2DModel", {}),
    "Z-Image": ("ZImagePipeline", "ZImageTransformer2DModel", {}),
    "Wan2.1-T2V-14B": ("WanPipeline", "WanTransformer3DModel", {}),
    "Wan2.1-I2V-14B": (
        "WanImageToVideoPipeline",
        "WanTransformer3DModel",
        {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120},
    ),
    "Wan2.2-TI2V-5B": (
        "WanPipeline",
        "WanTransformer3DModel",
        {"num_attention_heads": 24, "num_layers": 30, "ffn_dim": 14336, "in_channels": 48, "out_channels": 48},
    ),
    "HunyuanVideo": ("HunyuanVideoPipeline", "HunyuanVideoTransformer3DModel", {}),
}


@cache
def linear_layers(name: str) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of every linear layer of a published transformer, by its name."""
    _, kind, config = LAYOUTS[name]
    with torch.device("meta"):
        model = getattr(diffusers, kind)(**config)
    layers = {layer: m for layer, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    return {layer: (m.in_features, m.out_features) for layer, m in layers.items()}
