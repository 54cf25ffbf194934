"""Z-Image for the contract: a random-weight pipeline, and its own way to draw."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImageImg2ImgPipeline, ZImagePipeline, ZImageTransformer2DModel
from pipelines import small_vae, without_variance
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

LENGTH = 48  # text tokens; the transformer pads a prompt to a multiple of 32, so that prompts of the contract differ
SIZES = [(32, 32), (48, 32)]
GUIDED = 4.0
LORA = ["to_q", "to_k", "to_v", "to_out.0"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def build_tokenizer(length: int) -> Qwen2Tokenizer:
    """A token a byte, in a short chat."""
    tokens = [*SPECIAL, *sorted(ByteLevel.alphabet())]
    tokenizer = Qwen2Tokenizer({token: n for n, token in enumerate(tokens)}, [], extra_special_tokens=SPECIAL[1:])
    tokenizer.model_max_length, tokenizer.chat_template = length, CHAT
    return tokenizer


def text_config(layers: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(SPECIAL) + 256,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        head_dim=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )


def build(dynamic_shift: bool = False) -> ZImagePipeline:
    """An f4 VAE of 4 channels and Z-Image-Turbo's static shift."""
    torch.manual_seed(7)
    vae = small_vae()
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[128, 16, 16],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)  # zeros before training
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=dynamic_shift, shift=3.0),
        vae=vae,
        text_encoder=Qwen3Model(text_config(2)),
        tokenizer=build_tokenizer(LENGTH),
        transformer=transformer,
    )


def call(pipe, model, noise, prompts, steps):
    """Pictures [n, 3, H, W] in [0, 1] by the pipeline's own __call__, from noise [n, *latent]."""
    return pipe(
        list(prompts),
        height=model.height,
        width=model.width,
        num_inference_steps=steps,
        guidance_scale=model.cfg - 1,
        latents=noise,
        max_sequence_length=LENGTH,
        output_type="pt",  # it writes the chat into the list of prompts
    ).images


def latents(pipe, images):
    """Clean latents by the image-to-image pipeline, of pictures [n, 3, H, W] in [-1, 1]: at time 0 nothing is added."""
    without_variance(pipe.vae)
    pipe.scheduler.set_timesteps(sigmas=[0.0])
    other = ZImageImg2ImgPipeline.from_pipe(pipe)
    size = images.shape[2:]
    return other.prepare_latents(images, torch.zeros(1), len(images), 4, *size, torch.float32, "cpu", torch.Generator())
