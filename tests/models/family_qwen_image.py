"""Qwen-Image for the contract: a random-weight pipeline, and its own way to draw."""

import json

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageImg2ImgPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from pipelines import without_variance
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

LENGTH = 512  # text tokens of the pipeline that is built
SIZES = [(32, 32), (48, 32)]
GUIDED = 4.0
LORA = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
LAST = "transformer_blocks.1."  # its text is read by the picture, but what becomes of it is dropped
UNUSED = {LAST + part for part in ("attn.add_q_proj", "attn.norm_added_q", "attn.to_add_out", "txt_mlp")}
WORDS = "a red blue green circle square triangle triangles left of three two"
TEMPLATE = (
    "system Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the "
    "objects and background: user assistant"
)


def build_tokenizer() -> Qwen2Tokenizer:
    """Words of the template and of the prompts are single tokens, as in the true one; other words are taken by bytes."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = BpeTrainer(special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    bpe.train_from_iterator([f"{word} {word}" for word in (TEMPLATE + " " + WORDS).split()] * 2, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    return Qwen2Tokenizer(vocab=bpe.get_vocab(), merges=merges, additional_special_tokens=special[1:])


def build(**scheduler) -> QwenImagePipeline:
    """An f4 VAE of 4 channels and Qwen-Image's own schedule: dynamic shifting that ends above zero."""
    torch.manual_seed(7)
    tokenizer = build_tokenizer()
    text = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "max_position_embeddings": 1024,
                "bos_token_id": 0,
                "eos_token_id": 0,
                "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6},
            },
            vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32},
        )
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[-0.3, 0.2, 0.1, 0.4],
        latents_std=[1.4, 2.3, 0.8, 1.1],
    )
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
    )
    schedule = {"max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02, "use_dynamic_shifting": True, **scheduler}
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**schedule),
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        transformer=transformer,
    )


def call(pipe, model, noise, prompts, steps):
    """Pictures [n, 3, H, W] in [0, 1] by the pipeline's own __call__, from noise [n, *latent]."""
    return pipe(
        prompts,
        negative_prompt=[" "] * len(prompts) if model.cfg > 1 else None,
        true_cfg_scale=model.cfg,
        height=model.height,
        width=model.width,
        num_inference_steps=steps,
        latents=noise,
        max_sequence_length=LENGTH,
        output_type="pt",
    ).images


def latents(pipe, images):
    """Clean latents by the image-to-image pipeline, of pictures [n, 3, H, W] in [-1, 1]."""
    without_variance(pipe.vae)
    z = QwenImageImg2ImgPipeline.from_pipe(pipe)._encode_vae_image(images[:, :, None], torch.Generator())[:, :, 0]
    return pipe._pack_latents(z, *z.shape)
