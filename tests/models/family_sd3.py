"""Stable Diffusion 3 for the contract: a random-weight pipeline, and its own way to draw."""

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
)
from pipelines import small_t5, small_vae, without_variance
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from neighbor_grpo.worlds.scenes.pretrain import build_text

LENGTH = 16  # T5 tokens of the pipeline that is built
SIZES = [(32, 32), (48, 32)]
GUIDED = 4.0
LORA = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
UNUSED = {"transformer_blocks.1.attn.add_q_proj", "transformer_blocks.1.attn.norm_added_q"}  # the last text is read, not made


def build(dynamic_shift: bool = False, t5: bool = True) -> StableDiffusion3Pipeline:
    """SD3.5 medium's layout (one block with dual attention, normed queries and keys) and an f4 VAE of 4 channels."""
    torch.manual_seed(7)
    tokenizer, clip, t5_tokenizer, t5_model = build_text()
    t5_tokenizer.model_max_length = LENGTH
    clips = [
        CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=clip.config.vocab_size,
                hidden_size=width,
                projection_dim=width,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=12,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
            )
        )
        for width in (16, 20)
    ]
    t5_model = small_t5(t5_model.config.vocab_size)
    vae = small_vae(256)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=12,
        num_attention_heads=4,
        joint_attention_dim=40,
        caption_projection_dim=48,
        pooled_projection_dim=36,
        pos_embed_max_size=24,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=dynamic_shift, shift=3.0),
        vae=vae,
        text_encoder=clips[0],
        tokenizer=tokenizer,
        text_encoder_2=clips[1],
        tokenizer_2=tokenizer,
        text_encoder_3=t5_model if t5 else None,
        tokenizer_3=t5_tokenizer if t5 else None,
        transformer=transformer,
    )


def call(pipe, model, noise, prompts, steps):
    """Pictures [n, 3, H, W] in [0, 1] by the pipeline's own __call__, from noise [n, *latent]."""
    return pipe(
        prompts,
        height=model.height,
        width=model.width,
        num_inference_steps=steps,
        guidance_scale=model.cfg,
        latents=noise,
        max_sequence_length=model.max_sequence_length,
        output_type="pt",
    ).images


def latents(pipe, images):
    """Clean latents by the image-to-image pipeline, of pictures [n, 3, H, W] in [-1, 1]: at time 0 nothing is added."""
    without_variance(pipe.vae)
    pipe.scheduler.set_timesteps(sigmas=[0.0])
    other = StableDiffusion3Img2ImgPipeline.from_pipe(pipe)
    return other.prepare_latents(images, torch.zeros(1), len(images), 1, torch.float32, "cpu", torch.Generator())
