"""The tokenizers of a pipeline: that they tell prompts apart, and what of them the conditioning depends on."""

import hashlib
import json
from typing import Any

from diffusers import DiffusionPipeline
from transformers import PreTrainedTokenizerBase

from neighbor_grpo.errors import UserError

PROBES = ("a red circle", "two blue stars")  # as long as each other: even one unknown word after another must not be the same
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
        if one == other:
            raise UserError(f"the component {name!r} gives every prompt the same tokens: download the files that it lacks")
        encoder, highest = getattr(pipe, name.replace("tokenizer", "text_encoder"), None), max(one + other)
        words = highest + 1 if encoder is None else encoder.get_input_embeddings().num_embeddings
        if highest >= words:
            raise UserError(
                f"the component {name!r} has the token {highest}, and its encoder only {words}: download both again"
            )


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
