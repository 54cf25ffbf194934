"""How every learned scorer gets its files: a directory or a hub repository with config.json, the weights and the tokenizer's
files, as transformers saves them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import snapshot_download
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from neighbor_grpo.errors import UserError

CONVERTED = "~/.cache/neighbor-grpo/scorers"  # what `convert` writes, one directory per scorer


def find_weights(name: str, weights: str, setting: str = "weights") -> Path:
    """The directory `weights`, or the copy of that hub repository, downloaded if need be; safetensors where there are any.

    The files are fetched here and not by transformers, which asks a robot to convert a repository that has no safetensors
    and loads whatever that proposes.
    """
    place = Path(weights).expanduser()
    remedy = f"set scorers: {{{name}: {{{setting}: PATH}}}}"
    if weights.startswith(CONVERTED):
        remedy = f"run `neighbor-grpo rewards convert {name} CHECKPOINT`, or {remedy}"
    if not place.is_dir():
        if weights.startswith(("~", "/", ".")) or weights.count("/") != 1:
            raise UserError(f"{name}: there is no directory {place}: {remedy}")
        try:
            for files in ("model*.safetensors", "pytorch_model*.bin"):
                place = Path(snapshot_download(weights, allow_patterns=["*.json", "*.txt", files]))
                if any(place.glob(files)):
                    break
        except Exception as error:  # no network, no such repository, no access: each its own exception
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(f"{name}: {weights} is no directory and was not downloaded ({reason}): {remedy}") from error
    if not any([*place.glob("model*.safetensors"), *place.glob("pytorch_model*.bin")]):
        raise UserError(f"{name}: there is neither model.safetensors nor pytorch_model.bin in {place}: {remedy}")
    return place


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of missing and unexpected keys, which one line says better."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)


def read_model(kind: type[PreTrainedModel], name: str, place: Path) -> PreTrainedModel:
    """A model in which every weight comes from the file.  A .bin file is read as tensors only, no code is run."""
    safe = any(place.glob("model*.safetensors"))
    try:
        with _quiet():
            model, info = kind.from_pretrained(
                place, use_safetensors=safe, ignore_mismatched_sizes=True, output_loading_info=True
            )
    except Exception as error:  # damaged files, other kinds of model: each its own exception
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{name}: the weights in {place} do not load as {kind.__name__}: {reason}") from error
    complain(
        name,
        place,
        {
            "lack": info["missing_keys"],
            "have no use for": info["unexpected_keys"],
            "have another shape of": {key for key, *_ in info["mismatched_keys"]},
        },
    )
    return model


def complain(name: str, place: Path, wrong: dict[str, set[str]]) -> None:
    """Raise UserError for the first key there is; wrong: what the weights do with the keys -> keys."""
    for what, keys in wrong.items():
        if keys:
            raise UserError(f"{name}: the weights in {place} {what} {min(keys)}: they are damaged or of another model")


def read_tokenizer(
    kind: type[PreTrainedTokenizerBase], where: str | Path, vocabulary: int, spare: int = 0, remedy: str = "put it there"
) -> PreTrainedTokenizerBase:
    """A tokenizer for an embedding of that many tokens, of which `spare` need no word."""
    try:
        tokenizer = kind.from_pretrained(where)
        size = len(tokenizer)  # 2 or 5 special tokens where there are no files: transformers raises nothing
    except Exception as error:
        raise UserError(f"no {kind.__name__} at {where} ({type(error).__name__}): {remedy}") from error
    if not vocabulary - spare <= size <= vocabulary:
        raise UserError(f"no {kind.__name__} of {vocabulary} tokens at {where} (found {size}): {remedy}")
    return tokenizer
