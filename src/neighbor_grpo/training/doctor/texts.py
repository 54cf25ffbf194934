"""The check of the text encoders: do different prompts reach the model as different texts?"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from neighbor_grpo.models.family import Family
from neighbor_grpo.prompts.prompt import Prompt
from neighbor_grpo.run.findings import Finding

TEXTS = 24  # prompts that are encoded
SAME = 1e-3  # relative distance below which two embeddings count as one; bf16 resolves 4e-3
UNKNOWN = 0.05  # share of tokens outside the vocabulary: one word in twenty is lost
VOCABULARY = 0.9  # share of the rows of the embedding table that a tokenizer uses at least; published ones use 0.99


@dataclass
class Heard:
    """Collect what a text encoder was given and what it returned, by text."""

    ids: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def hook(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        """Take the tokens and the output of one forward."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        if isinstance(ids, Tensor) and not ids.is_floating_point():
            self.ids += ids.cpu()
            self.outputs += output[0].detach().float().cpu()


def encoder_findings(model: Family, prompts: Sequence[Prompt]) -> list[Finding]:
    """Encode prompts with different texts, and compare tokens and embeddings in every text encoder."""
    different = list({prompt.text: prompt for prompt in prompts}.values())
    chosen = different[:: max(1, len(different) // TEXTS)][:TEXTS]
    if len(chosen) < 2:
        return [Finding("text_encoder", "note", "there is only one prompt, so texts cannot be compared", 1.0, 2.0)]
    heard = {name: Heard() for name in model.encoders if getattr(model.pipe, name, None) is not None}
    with ExitStack() as stack:
        for name, one in heard.items():
            hook = getattr(model.pipe, name).register_forward_hook(one.hook, with_kwargs=True)
            stack.callback(hook.remove)
        model.encode([prompt.text for prompt in chosen], [prompt.images for prompt in chosen])
    texts = [prompt.text for prompt in chosen]
    return [_of_encoder(model, name, one, texts) for name, one in heard.items() if len(one.ids) == len(chosen)]


def _of_encoder(model: Family, name: str, heard: Heard, texts: list[str]) -> Finding:
    encoder, tokenizer = getattr(model.pipe, name), getattr(model.pipe, name.replace("text_encoder", "tokenizer"), None)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # some pipelines have it inside of a processor
    faults = (
        _broken_weights(name, encoder),
        _same("token ids", name, heard.ids, texts),
        _lost_words(name, tokenizer, heard.ids),
        _empty_rows(name, encoder, tokenizer, heard.ids),
        _same("embeddings", name, heard.outputs, texts),
        _small_vocabulary(name, encoder, tokenizer),
    )
    text = f"{name} encodes {len(texts)} prompts differently"
    return next((fault for fault in faults if fault), Finding("text_encoder", "ok", text, 0.0, 0.0))


def _broken_weights(name: str, encoder: nn.Module) -> Finding | None:
    """Find a matrix of zeros, or numbers that are not finite: weights that were never read."""
    for key, weight in encoder.named_parameters():
        if not bool(weight.isfinite().all()):
            return Finding("text_encoder", "error", f"{name}: {key} has numbers that are not finite", 1.0, 0.0)
        if weight.ndim > 1 and not bool(weight.any()):
            return Finding("text_encoder", "error", f"{name}: {key} is entirely zero", 1.0, 0.0)
    return None


def _same(what: str, name: str, rows: list[Tensor], texts: list[str]) -> Finding | None:
    """Find pairs of texts that cannot be told apart."""
    alike = [(a, b) for a, b in combinations(range(len(rows)), 2) if _equal(rows[a], rows[b])]
    if not alike:
        return None
    pairs, first = len(rows) * (len(rows) - 1) // 2, alike[0]
    text = f"{name}: {len(alike)} of {pairs} pairs of prompts have the same {what}, {texts[first[0]]!r} and {texts[first[1]]!r}"
    return Finding("text_encoder", "error", text, float(len(alike)), 0.0)


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return bool((a == b).all())
    return float((a - b).norm()) <= SAME * float(a.norm())


def _special(tokenizer: Any) -> set[int]:
    return set(getattr(tokenizer, "all_special_ids", ()))


def _lost_words(name: str, tokenizer: Any, ids: list[Tensor]) -> Finding | None:
    """Find texts whose words the vocabulary lacks."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    others = {getattr(tokenizer, f"{kind}_token_id", None) for kind in ("pad", "eos", "bos")}
    if unknown is None or unknown in others:
        return None
    tokens = torch.cat([row.flatten() for row in ids])
    words = [token for token in tokens.tolist() if token == unknown or token not in _special(tokenizer)]
    share = words.count(unknown) / max(len(words), 1)
    if share <= UNKNOWN:
        return None
    text = f"{name}: {share:.0%} of the tokens of the prompts are not in the vocabulary"
    return Finding("text_encoder", "error", text, share, UNKNOWN)


def _empty_rows(name: str, encoder: nn.Module, tokenizer: Any, ids: list[Tensor]) -> Finding | None:
    """Find words whose row of the embedding table is zero."""
    table = _table(encoder)
    used = sorted(set(torch.cat([row.flatten() for row in ids]).tolist()) - _special(tokenizer))
    if table is None or not used:
        return None
    empty = int((~table[used].any(1)).sum())
    text = f"{name}: {empty} of {len(used)} tokens have an embedding of zeros"
    return Finding("text_encoder", "error", text, float(empty), 0.0) if empty else None


def _small_vocabulary(name: str, encoder: nn.Module, tokenizer: Any) -> Finding | None:
    """Find a tokenizer that uses only a part of the embedding table."""
    table = _table(encoder)
    if table is None or not hasattr(tokenizer, "__len__"):
        return None
    share = len(tokenizer) / len(table)
    text = f"{name}: its tokenizer knows {len(tokenizer):,} tokens, and the encoder was trained with {len(table):,}"
    return Finding("text_encoder", "warning", text, share, VOCABULARY) if share < VOCABULARY else None


def _table(encoder: nn.Module) -> Tensor | None:
    find: Any = getattr(encoder, "get_input_embeddings", None)
    weight = getattr(find(), "weight", None) if find else None
    return weight.detach() if isinstance(weight, Tensor) else None
