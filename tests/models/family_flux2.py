"""FLUX.2 klein for the contract: a random-weight pipeline, and its own way to draw."""

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from family_z_image import build_tokenizer, text_config
from transformers import Qwen3ForCausalLM

LENGTH = 32  # text tokens of the pipeline that is built
SIZES = [(32, 32), (48, 32)]
GUIDED = 4.0
LORA = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
    "to_qkv_mlp_proj",
    "single_transformer_blocks.0.attn.to_out",  # the single blocks, all in one layer each way
]


def parts(guidance: bool = False) -> dict:
    """An f4 VAE of 4 channels with statistics unlike 0 and 1, klein's dynamic shift, text from three layers."""
    torch.manual_seed(7)
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        batch_norm_eps=0.3,
    )
    torch.nn.init.normal_(vae.bn.running_mean)
    torch.nn.init.uniform_(vae.bn.running_var, 0.1, 4.0)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * 16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )
    return {
        "vae": vae,
        "transformer": transformer,
        "tokenizer": build_tokenizer(LENGTH),
        "text_encoder": Qwen3ForCausalLM(text_config(31)),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
    }


def build(**options) -> Flux2KleinPipeline:
    return Flux2KleinPipeline(**parts(), **options)


def call(pipe, model, noise, prompts, steps):
    """Pictures [n, 3, H, W] in [0, 1] by the pipeline's own __call__, from noise [n, *latent]."""
    return pipe(
        prompt=prompts,
        height=model.height,
        width=model.width,
        num_inference_steps=steps,
        guidance_scale=model.cfg,
        latents=noise.mT.unflatten(2, model.grid),
        max_sequence_length=LENGTH,
        output_type="pt",
    ).images


def latents(pipe, images):
    """Clean latents as the pipeline encodes its source pictures, of pictures [n, 3, H, W] in [-1, 1]."""
    return pipe._pack_latents(pipe._encode_vae_image(images, torch.Generator()))
