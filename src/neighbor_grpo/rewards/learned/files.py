"""Files of the learned scorers: config.json, weights and tokenizer, in a directory or a hub repository.

The layout is that of transformers' `save_pretrained`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from neighbor_grpo.console import reason_of
from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic

Model = TypeVar("Model", bound=PreTrainedModel)
Tokenizer = TypeVar("Tokenizer", bound=PreTrainedTokenizerBase)

KIND = "scorer"  # of the directories that `convert` writes, in their manifests
CONVERTED = "~/.cache/neighbor-grpo/scorers"  # where it writes them


def find_weights(name: str, weights: str, setting: str = "weights") -> Path:
    """Find the directory `weights`, or download that hub repository.  Raises UserError if weights are missing.

    Of a repository, safetensors are downloaded if it has them, else pickles.  transformers does not download them, because
    for a repository without safetensors it loads an automatic conversion that someone else's service proposes.
    """
    place = Path(weights).expanduser()
    remedy = f"set scorers: {{{name}: {{{setting}: PATH}}}}"
    if weights.startswith(CONVERTED):
        remedy = f"run `neighbor-grpo rewards convert {name} CHECKPOINT`, or {remedy}"
    if not place.is_dir():
        if weights.startswith(("~", "/", ".")) or weights.count("/") != 1:
            raise UserError(f"{name}: no such directory {place}: {remedy}")
        try:
            for files in ("model*.safetensors", "pytorch_model*.bin"):
                place = Path(snapshot_download(weights, allow_patterns=["*.json", "*.txt", files]))
                if any(place.glob(files)):
                    break
        except Exception as error:  # huggingface_hub, httpx and the file system have their own exceptions
            raise UserError(
                f"{name}: {weights} is not a directory and was not downloaded ({reason_of(error, 200)}): {remedy}"
            ) from error
    if not any([*place.glob("model*.safetensors"), *place.glob("pytorch_model*.bin")]):
        raise UserError(f"{name}: neither model.safetensors nor pytorch_model.bin in {place}: {remedy}")
    if (place / atomic.MANIFEST).is_file():  # written by `convert`
        try:
            atomic.check(place, KIND)
        except atomic.DamagedError as error:
            raise UserError(f"{name}: {error}: {remedy}") from error
    return place


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' table of missing and unexpected keys: an error reports them in one line."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)


def read_model(kind: type[Model], name: str, place: Path) -> Model:
    """Read a model from a directory.  A .bin file is read as tensors only, and its code does not run.

    Raises UserError unless every weight of the model comes from the file and every weight of the file is used.
    """
    safe = any(place.glob("model*.safetensors"))
    try:
        with _quiet():
            # Any: with loading info this returns a pair, which its annotation leaves out
            loaded: Any = kind.from_pretrained(
                place, use_safetensors=safe, ignore_mismatched_sizes=True, output_loading_info=True
            )
    except Exception as error:  # pickle, safetensors, torch and transformers have their own exceptions
        raise UserError(
            f"{name}: the weights in {place} do not load as {kind.__name__}: {reason_of(error, 200)}: "
            "download or convert them again"
        ) from error
    model, info = loaded
    check_keys(
        name,
        place,
        {
            "lack": info["missing_keys"],
            "have an unexpected": info["unexpected_keys"],
            "have another shape of": {key for key, *_ in info["mismatched_keys"]},
        },
    )
    return model


def read_state(name: str, place: Path) -> dict[str, Tensor]:
    """Read the tensors of model.safetensors.  Raises UserError if the file is missing or damaged."""
    try:
        return load_file(place / "model.safetensors")
    except Exception as error:  # safetensors, torch and the file system have their own exceptions
        raise UserError(
            f"{name}: the weights in {place} do not load: {reason_of(error, 200)}: convert or copy them again"
        ) from error


def check_keys(name: str, place: Path, wrong: dict[str, set[str]]) -> None:
    """Check that no key of the weights is wrong, from {what is wrong: keys}.  Raises UserError for the first key."""
    for what, keys in wrong.items():
        if keys:
            raise UserError(f"{name}: the weights in {place} {what} {min(keys)}: give undamaged weights of this model")


def read_tokenizer(
    kind: type[Tokenizer], where: str | Path, vocabulary: int, spare: int = 0, remedy: str = "put it there"
) -> Tokenizer:
    """Read a tokenizer for an embedding of `vocabulary` tokens; up to `spare` of them may be missing in the tokenizer.

    Raises UserError if the tokenizer is missing or has another size.
    """
    try:
        tokenizer = kind.from_pretrained(where)
        size = len(tokenizer)  # without files 2 or 5: transformers then returns special tokens only
    except Exception as error:  # tokenizers, huggingface_hub and transformers have their own exceptions
        raise UserError(f"no {kind.__name__} at {where} ({type(error).__name__}): {remedy}") from error
    if not vocabulary - spare <= size <= vocabulary:
        raise UserError(f"no {kind.__name__} of {vocabulary} tokens at {where} (found {size}): {remedy}")
    return tokenizer
