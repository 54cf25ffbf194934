"""The components of a bundled model with random weights: diffusers and transformers classes in small."""

import json
from collections.abc import Iterable
from typing import TypeAlias

from diffusers import AutoencoderKL, FluxTransformer2DModel
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

Text: TypeAlias = tuple[CLIPTokenizer, CLIPTextModel, T5Tokenizer, T5EncoderModel]


def build_vae(channels: tuple[int, ...], latent_channels: int, sample_size: int | tuple[int, int]) -> AutoencoderKL:
    """Build a VAE with random weights, which halves the picture between each two of `channels`."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=sample_size,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def build_transformer(latent_channels: int, heads: int) -> FluxTransformer2DModel:
    """Build a FLUX transformer with random weights: two double and four single blocks of `heads` heads of 32."""
    return FluxTransformer2DModel(
        in_channels=4 * latent_channels,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=heads,
        joint_attention_dim=128,
        pooled_projection_dim=64,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )


def word_tokens(words: Iterable[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the vocabulary and merges of a byte-pair encoding in which each word is a token."""
    bpe = Tokenizer(BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = Whitespace()
    bpe.train_from_iterator(words, BpeTrainer(special_tokens=["<|startoftext|>", "<|endoftext|>"], end_of_word_suffix="</w>"))
    return bpe.get_vocab(), [(one, other) for one, other in json.loads(bpe.to_str())["model"]["merges"]]


def build_text(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], clip_length: int, pieces: Iterable[str], t5_length: int
) -> Text:
    """Build two encoders with random weights for prompts of so many tokens; what is not a token is unknown to them.

    vocabulary, merges: CLIP's byte-pair encoding; pieces: T5's tokens, in which "▁" stands for the space before a word.
    """
    clip_tokenizer = CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,  # type: ignore[arg-type]  # declared as strings, but it takes the pairs of a tokenizer's file
        model_max_length=clip_length,
    )
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=clip_length,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -1.0) for piece in pieces)]
    t5_tokenizer = T5Tokenizer(vocab=scores, extra_ids=0, model_max_length=t5_length)
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(scores),
            d_model=128,
            d_kv=32,
            d_ff=256,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )
    return clip_tokenizer, clip, t5_tokenizer, t5
