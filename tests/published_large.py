"""More published pipelines without their weights, by the configurations of their authors: see published.py."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from models.family_hunyuan_video import build_tokenizer as llama_tokenizer
from models.family_qwen_image import build_tokenizer as qwen_tokenizer
from models.family_z_image import build_tokenizer as chat_tokenizer
from published import CLIP_L, T5_XXL, saved, tokenizers, vae
from transformers import (
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

QWEN3_4B = Qwen3Config(
    vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
    num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
)  # fmt: skip
QWEN_VL_7B = Qwen2_5_VLConfig(
    text_config={
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4,
        "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
    },
    vision_config={"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584},
)  # fmt: skip
LLAMA_8B = LlamaConfig(
    vocab_size=128320, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, bos_token_id=1, eos_token_id=2, pad_token_id=2,
)  # fmt: skip
UMT5_XXL = UMT5Config(
    vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
)
META = torch.device("meta")


def flux_schnell(place: Path) -> Path:
    """FLUX.1-schnell: 11.9 billion parameters."""
    tokenizer, t5_tokenizer = tokenizers()
    t5_tokenizer.model_max_length = 256
    with META:
        parts = {
            "transformer": FluxTransformer2DModel(),
            "vae": vae(0.3611, 0.1159),
            "text_encoder": CLIPTextModel(CLIP_L),
            "text_encoder_2": T5EncoderModel(T5_XXL),
        }
    schedule = FlowMatchEulerDiscreteScheduler()
    return saved(FluxPipeline(**parts, tokenizer=tokenizer, tokenizer_2=t5_tokenizer, scheduler=schedule), place)


def flux2_klein(place: Path) -> Path:
    """FLUX.2 klein: 3.9 billion parameters."""
    with META:
        parts = {
            "transformer": Flux2Transformer2DModel(
                num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=3 * 2560, guidance_embeds=False
            ),
            "vae": AutoencoderKLFlux2(),
            "text_encoder": Qwen3ForCausalLM(QWEN3_4B),
        }
    schedule = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    pipe = Flux2KleinPipeline(**parts, tokenizer=chat_tokenizer(512), scheduler=schedule, is_distilled=True)
    return saved(pipe, place)


def qwen_image(place: Path) -> Path:
    """Qwen-Image: 20.4 billion parameters."""
    with META:
        parts = {
            "transformer": QwenImageTransformer2DModel(),
            "vae": AutoencoderKLQwenImage(),
            "text_encoder": Qwen2_5_VLForConditionalGeneration(QWEN_VL_7B),
        }
    schedule = FlowMatchEulerDiscreteScheduler(
        max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02, use_dynamic_shifting=True
    )
    return saved(QwenImagePipeline(**parts, tokenizer=qwen_tokenizer(), scheduler=schedule), place)


def z_image_turbo(place: Path) -> Path:
    """Z-Image-Turbo: 6.2 billion parameters."""
    with META:
        parts = {
            "transformer": ZImageTransformer2DModel(),
            "vae": vae(0.3611, 0.1159),
            "text_encoder": Qwen3Model(QWEN3_4B),
        }
    schedule = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return saved(ZImagePipeline(**parts, tokenizer=chat_tokenizer(512), scheduler=schedule), place)


def wan21_t2v(place: Path) -> Path:
    """Wan 2.1 text-to-video: 1.4 billion parameters."""
    with META:
        parts = {
            "transformer": WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=30),
            "vae": AutoencoderKLWan(),
            "text_encoder": UMT5EncoderModel(UMT5_XXL),
        }
    schedule = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return saved(WanPipeline(**parts, tokenizer=tokenizers()[1], scheduler=schedule), place)


def wan22_i2v(place: Path) -> Path:
    """Wan 2.2 image-to-video: two experts of 14.3 billion parameters."""
    with META:
        parts = {
            "transformer": WanTransformer3DModel(in_channels=36),
            "transformer_2": WanTransformer3DModel(in_channels=36),
            "vae": AutoencoderKLWan(),
            "text_encoder": UMT5EncoderModel(UMT5_XXL),
        }
    schedule = FlowMatchEulerDiscreteScheduler(shift=5.0)
    pipe = WanImageToVideoPipeline(**parts, tokenizer=tokenizers()[1], scheduler=schedule, boundary_ratio=0.9)
    return saved(pipe, place)


def hunyuan_video(place: Path) -> Path:
    """HunyuanVideo: 12.8 billion parameters."""
    with META:
        parts = {
            "transformer": HunyuanVideoTransformer3DModel(),
            "vae": AutoencoderKLHunyuanVideo(),
            "text_encoder": LlamaModel(LLAMA_8B),
            "text_encoder_2": CLIPTextModel(CLIP_L),
        }
    schedule, clip = FlowMatchEulerDiscreteScheduler(shift=7.0), tokenizers()[0]
    return saved(HunyuanVideoPipeline(**parts, tokenizer=llama_tokenizer(), tokenizer_2=clip, scheduler=schedule), place)
