"""Conditioning of prompts, computed once and kept on disk."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from neighbor_grpo.console import bar
from neighbor_grpo.errors import UserError
from neighbor_grpo.models.registry import Cond, FlowModel
from neighbor_grpo.prompts.reading import Prompt

TOGETHER = 32  # prompts that are encoded at once


def encoded(model: FlowModel, prompts: Sequence[Prompt]) -> Cond:
    """Conditioning by the prompts and the pictures they start from."""
    images = [prompt.image for prompt in prompts if prompt.image]
    if images and len(images) < len(prompts):
        raise UserError(f'{len(prompts) - len(images)} prompts have no "image", the others do: give it to all or to none')
    return model.encode([prompt.text for prompt in prompts], images)


class TextCache:
    """Conditioning of prompts on disk, each encoded once, the oldest dropped when the budget is full.

    Encoders are large and loading them onto the device is slow: a miss encodes the coming prompts along with its own,
    as many as half the budget holds.
    """

    def __init__(self, model: FlowModel, directory: Path, budget_gb: float) -> None:
        self.model, self.budget = model, budget_gb * 2**30
        self.directory = directory / model.fingerprint
        self.directory.mkdir(parents=True, exist_ok=True)
        self.size = sum(file.stat().st_size for file in self.directory.glob("*.safetensors"))

    def __call__(self, prompts: Sequence[Prompt], coming: Iterable[Prompt] = (), chunk: int = TOGETHER) -> Cond:
        """Conditioning of `prompts`, in their order, on the CPU."""
        keys = [self._key(prompt) for prompt in prompts]
        here = {key: self._load(key) for key in dict.fromkeys(keys)}
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if here[key] is None}
        if missing:
            fresh = self._encode(missing, chunk)
            here.update(fresh)
            size = sum(tensor.nbytes for tensor in next(iter(fresh.values())))
            room = max(0, int(self.budget / 2 / size) - len(here))
            ahead = {key: prompt for prompt in coming if not self._path(key := self._key(prompt)).is_file()}
            self._encode({key: ahead[key] for key in list(ahead)[:room] if key not in here}, chunk)
        kind = type(here[keys[0]])
        return kind(*(torch.stack(tensors) for tensors in zip(*(here[key] for key in keys), strict=True)))

    def _key(self, prompt: Prompt) -> str:
        picture = prompt.image.read_bytes() if prompt.image else b""
        return hashlib.sha256(prompt.text.encode() + hashlib.sha256(picture).digest() * bool(picture)).hexdigest()[:32]

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}.safetensors"

    def _load(self, key: str) -> Cond | None:
        path = self._path(key)
        try:
            os.utime(path)
            return self.model.Cond(**load_file(path))
        except FileNotFoundError:  # never there, or dropped by another run just now
            return None

    def _encode(self, prompts: dict[str, Prompt], chunk: int) -> dict[str, Cond]:
        done, keys = {}, list(prompts)
        parts = [keys[start : start + chunk] for start in range(0, len(keys), chunk)]
        for part in bar(parts, "encoding prompts"):
            conds = encoded(self.model, [prompts[key] for key in part])
            for n, key in enumerate(part):
                done[key] = type(conds)(*(tensor[n].contiguous() for tensor in conds))
                self._store(self._path(key), done[key])
        return done

    def _store(self, path: Path, cond: Cond) -> None:
        """Whole or not at all: written aside, then moved into place."""
        aside = path.with_suffix(f".{os.getpid()}")
        save_file(cond._asdict(), aside)
        self.size += aside.stat().st_size
        aside.replace(path)
        if self.size > self.budget:
            for old in sorted(self.directory.glob("*.safetensors"), key=lambda file: file.stat().st_mtime):
                if self.size <= 0.9 * self.budget or old == path:
                    break
                self.size -= old.stat().st_size
                old.unlink(missing_ok=True)
