"""Conditioning of prompts, computed once and kept on disk."""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from neighbor_grpo.console import bar, say
from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic
from neighbor_grpo.files.text import expand_home
from neighbor_grpo.models.conditioning import Cond
from neighbor_grpo.models.family import Family
from neighbor_grpo.models.fingerprint import fingerprint
from neighbor_grpo.models.tokenizers import check_words
from neighbor_grpo.prompts.prompt import Prompt

ENCODE_BATCH = 32  # prompts in a forward of the encoders
CHECKSUM = "checksum"  # its key in a file's metadata


def check_prompts(model: Family, prompts: Sequence[Prompt]) -> None:
    """Raise UserError for words that the model does not know and would leave out: a model of the package knows few."""
    if model.closed:
        check_words(model.pipe, dict.fromkeys(prompt.text for prompt in prompts))


def encode_prompts(model: Family, prompts: Sequence[Prompt]) -> Cond:
    """Encode the texts and source pictures of prompts, without a cache.  Raises UserError for unknown words."""
    check_prompts(model, prompts)
    return model.encode([prompt.text for prompt in prompts], [prompt.images for prompt in prompts])


def cache_directory(path: str) -> Path:
    """Make the directory of `prompts.cache_dir` and return it.  Raises UserError where nothing can be written there.

    Call it before a model is loaded.
    """
    try:
        directory = Path(expand_home(path))
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"0")
    except (OSError, UserError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"prompts.cache_dir: nothing can be written in {path} ({reason}): set prompts.cache_dir to a directory of yours"
        ) from error
    return directory


class TextCache:
    """Keep the conditioning of prompts on disk, each encoded once; delete the oldest when the budget is full.

    Encoders are large, and loading them onto the device is slow: a miss also encodes coming prompts, up to half the budget.
    Several runs may share a directory.  A file that is damaged is encoded again.  Where a file cannot be written, the run
    continues without it and says so: the conditioning is right, and only its next use takes longer.
    """

    def __init__(self, model: Family, directory: Path, budget_gb: float) -> None:
        self.model, self.root, self.budget = model, directory, budget_gb * 2**30
        self.directory = directory / fingerprint(model)
        self.size = 0
        self.failed = False  # whether a file could not be written
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            atomic.remove_dead(self.directory)
            self.size = sum(size for _, size, _ in self._files())
        except OSError as error:
            self._warn(error)

    def of(self, model: Family) -> "TextCache":
        """Return the cache of a model with other settings, for instance another size: this one for the same model."""
        return self if model is self.model else TextCache(model, self.root, self.budget / 2**30)

    def encode(self, prompts: Sequence[Prompt], coming: Iterable[Prompt] = (), batch: int = ENCODE_BATCH) -> Cond:
        """Return the conditioning of `prompts`, in their order, on the CPU."""
        keys = [self._key(prompt) for prompt in prompts]
        known = {key: cond for key in dict.fromkeys(keys) if (cond := self._load(key)) is not None}
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in known}
        if missing:
            known |= self._encode(missing, batch)
            size = sum(tensor.nbytes for tensor in known[keys[0]])
            room = 0 if self.failed else max(0, int(self.budget / 2 / size) - len(known))
            ahead = {key: prompt for prompt in coming if not self._path(key := self._key(prompt)).is_file()}
            self._encode({key: ahead[key] for key in list(ahead)[:room] if key not in known}, batch)
        return self.model.conditioning.concatenate([known[key] for key in keys])

    def _key(self, prompt: Prompt) -> str:
        try:
            pictures = [hashlib.sha256(image.read_bytes()).hexdigest() for image in prompt.images]
        except OSError as error:
            raise UserError(
                f"{error.filename} cannot be read as a picture ({error.strerror}): check the prompt file"
            ) from error
        return hashlib.sha256(json.dumps([prompt.text, *pictures]).encode()).hexdigest()[:32]

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}.safetensors"

    def _load(self, key: str) -> Cond | None:
        """Read the conditioning of a prompt; None where its file is missing or not as it was written."""
        path = self._path(key)
        try:
            os.utime(path)  # it is young again
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, the file has no iterator
                whole = (file.metadata() or {}).get(CHECKSUM) == _checksum(key, tensors)
        except (OSError, SafetensorError):  # never written, deleted by another run, unreadable, or damaged
            return None
        return self.model.conditioning(**tensors) if whole else None

    def _encode(self, prompts: dict[str, Prompt], batch: int) -> dict[str, Cond]:
        """Encode prompts by their keys, store the conditioning of each and return it."""
        done: dict[str, Cond] = {}
        keys = list(prompts)
        batches = [keys[start : start + batch] for start in range(0, len(keys), batch)]
        for some in bar(batches, "encoding prompts"):
            cond = encode_prompts(self.model, [prompts[key] for key in some])
            for n, key in enumerate(some):
                done[key] = cond.take(torch.tensor([n]))
                self._store(key, done[key])
        return done

    def _store(self, key: str, cond: Cond) -> None:
        path, tensors = self._path(key), {name: tensor.contiguous() for name, tensor in vars(cond).items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            before = path.stat().st_size if path.is_file() else 0
            with atomic.writing(path, durable=False) as aside:
                save_file(tensors, aside, {CHECKSUM: _checksum(key, tensors)})
                self.size += aside.stat().st_size - before
            if self.size > self.budget:
                self._delete_oldest(path)
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        """Say once that the cache cannot be written."""
        if not self.failed:
            text = (
                f"warning: prompts.cache_dir: {self.directory} cannot be written ({error.strerror}): prompts are encoded again"
            )
            say(text, sys.stderr)
        self.failed = True

    def _delete_oldest(self, kept: Path) -> None:
        """Delete the files that were used least recently, down to 90 % of the budget, except `kept`."""
        files = self._files()
        self.size = sum(size for _, size, _ in files)  # another run may have written or deleted some
        for _, size, file in sorted(files):
            if self.size <= 0.9 * self.budget or file == kept:
                break
            self.size -= size
            file.unlink(missing_ok=True)

    def _files(self) -> list[tuple[float, int, Path]]:
        """Return time of use, size and path of each file; another run may delete some meanwhile."""
        found = []
        for file in self.directory.glob("*.safetensors"):
            try:
                stat = file.stat()
            except FileNotFoundError:
                continue
            found.append((stat.st_mtime, stat.st_size, file))
        return found


def _checksum(key: str, tensors: dict[str, Tensor]) -> str:
    """Return a hash of a prompt's key and of the names, types, shapes and values of its tensors."""
    digest = hashlib.sha256(key.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
