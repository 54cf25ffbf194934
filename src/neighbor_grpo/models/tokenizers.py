"""The tokenizers of a pipeline: that they tell prompts apart, and what of them the conditioning depends on."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

from diffusers import DiffusionPipeline
from transformers import PreTrainedTokenizerBase

from neighbor_grpo.errors import UserError, shown

PROBES = ("a red circle", "two blue stars")
_PLACES = ("name_or_path", "vocab_file", "merges_file", "tokenizer_file", "spm_file", "is_local", "local_files_only", "backend")


def tokenizers_of(pipe: DiffusionPipeline) -> dict[str, PreTrainedTokenizerBase]:
    """Return the tokenizers of a pipeline by the names of their components; some are inside of a processor."""
    parts = {name: getattr(part, "tokenizer", part) for name, part in pipe.components.items()}
    return {name: part for name, part in parts.items() if isinstance(part, PreTrainedTokenizerBase)}


def check_tokenizers(pipe: DiffusionPipeline) -> None:
    """Raise UserError for a tokenizer to which two prompts are the same, or whose tokens its encoder does not have.

    A tokenizer whose files are missing may load as an empty one: every prompt would then be the same picture.
    """
    for name, tokenizer in tokenizers_of(pipe).items():
        one, other = (tokenizer(text).input_ids for text in PROBES)
        if set(one) == set(other):  # also where every character is the unknown word
            raise UserError(f"the component {name!r} gives every prompt the same tokens: download the files that it lacks")
        encoder, highest, length = getattr(pipe, _encoder(name), None), max(one + other), tokenizer.model_max_length
        if encoder is None:
            continue
        if highest >= (words := encoder.get_input_embeddings().num_embeddings):
            raise UserError(
                f"the component {name!r} has the token {highest}, and its encoder only {words}: download both again"
            )
        # CLIP's texts are filled up to the tokenizer's length, which without its settings is 10^30
        places = encoder.config.max_position_embeddings if encoder.config.model_type == "clip_text_model" else length
        if not 2 < length <= places:
            raise UserError(
                f"the component {name!r} gives {length} tokens, and its encoder takes {places}: download both again"
            )


def check_words(pipe: DiffusionPipeline, texts: Iterable[str]) -> None:
    """Raise UserError for a text with a part that a tokenizer does not know: it would be left out of the prompt."""
    for text in texts:
        unknown = [part for tokenizer in tokenizers_of(pipe).values() for part in _unknown(tokenizer, text)]
        if unknown:
            raise UserError(
                f"this model does not know {shown(max(unknown, key=len), 50)}, in the prompt {shown(text, 100)}: "
                "write prompts like those that it was made for (docs/worlds.md)"
            )


def _unknown(tokenizer: PreTrainedTokenizerBase, text: str) -> Iterator[str]:
    """Yield the parts of a text in whose place a tokenizer puts its unknown token."""
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    for token, (start, end) in zip(read.input_ids, read.offset_mapping, strict=True):
        if token == tokenizer.unk_token_id:
            yield text[start:end].strip()


def _encoder(tokenizer: str) -> str:
    """Return the name of the component that encodes the tokens of a tokenizer."""
    return tokenizer.replace("tokenizer", "text_encoder")


def contents(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of a tokenizer's vocabulary, rules and settings, wherever its files lie."""
    settings = {key: str(value) for key, value in tokenizer.init_kwargs.items() if key not in _PLACES}
    settings |= {"model_max_length": str(tokenizer.model_max_length), "chat_template": str(tokenizer.chat_template)}
    if tokenizer.is_fast:
        rules: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        rules = {key: value for key, value in rules.items() if key not in ("truncation", "padding")}  # of the last call
    else:
        model = getattr(tokenizer, "sp_model", None)
        rules = {"words": tokenizer.get_vocab(), "model": model.serialized_model_proto().hex() if model else None}
    said = json.dumps([type(tokenizer).__name__, settings, rules], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()
