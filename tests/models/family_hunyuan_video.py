"""HunyuanVideo for the contract: a random-weight pipeline, and its own way to draw."""

import re

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from neighbor_grpo.worlds.scenes.pretrain import build_text

LENGTH = 256  # text tokens of the pipeline
SIZES = [(32, 32), (48, 32)]
FRAMES = 5
GUIDED = 4.0
LORA = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"  # Llama 3's, but for what no prompt here has
WORDS = " a red blue green circle square triangle triangles star stars left of three two"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A token a word; the template's beginning is then 95 tokens, as in the true one."""
    special = ["<|unknown|>", "<|begin_of_text|>", *sorted(set(re.findall(r"<\|\w+\|>", DEFAULT_PROMPT_TEMPLATE["template"])))]
    split = Split(Regex(PIECES), "isolated")
    text = re.sub(r"<\|\w+\|>", "", DEFAULT_PROMPT_TEMPLATE["template"]) + WORDS + " three a"
    words = sorted({word for word, _ in split.pre_tokenize_str(text)} | set(WORDS.split()))
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate([*special, *words])}, unk_token=special[0]))
    tokenizer.pre_tokenizer = split
    tokenizer.post_processor = TemplateProcessing(single=f"{special[1]} $A", special_tokens=[(special[1], 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=special[0],
        bos_token=special[1],
        pad_token="<|eot_id|>",
        additional_special_tokens=special[2:],
        padding_side="right",
    )


def build(guidance: bool = True) -> HunyuanVideoPipeline:
    """The true f8 VAE's layout with a frame for four, 4 channels, the true static shift; CLIP has its 77 positions."""
    torch.manual_seed(7)
    tokenizer, (clip_tokenizer, clip, _, _) = build_tokenizer(), build_text()
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=clip.config.vocab_size,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    llama = LlamaModel(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=1,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        )
    )
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.48,
    )
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=24,
        pooled_projection_dim=32,
        rope_axes_dim=(4, 6, 6),
        guidance_embeds=guidance,
    )
    return HunyuanVideoPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        vae=vae,
        text_encoder=llama,
        tokenizer=tokenizer,
        text_encoder_2=clip,
        tokenizer_2=clip_tokenizer,
        transformer=transformer,
    )


def call(pipe, model, noise, prompts, steps):
    """Videos [n, T, 3, H, W] in [0, 1] by the pipeline's own __call__, from noise [n, *latent]."""
    return pipe(
        prompts,
        negative_prompt=[""] * len(prompts) if model.cfg > 1 else None,
        true_cfg_scale=model.cfg,
        **({"guidance_scale": model.guidance_scale} if model.guidance_scale else {}),
        height=model.height,
        width=model.width,
        num_frames=model.frames,
        num_inference_steps=steps,
        latents=noise,
        output_type="pt",
    ).frames
