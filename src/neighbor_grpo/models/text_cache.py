"""Conditioning of prompts, computed once and kept on disk."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from neighbor_grpo.console import bar
from neighbor_grpo.models.conditioning import Cond
from neighbor_grpo.models.family import Family
from neighbor_grpo.prompts.reading import Prompt

ENCODE_BATCH = 32  # prompts in a forward of the encoders


def encode_prompts(model: Family, prompts: Sequence[Prompt]) -> Cond:
    """Encode the texts and source pictures of prompts, without a cache."""
    return model.encode([prompt.text for prompt in prompts], [prompt.images for prompt in prompts])


class TextCache:
    """Keep the conditioning of prompts on disk, each encoded once; delete the oldest when the budget is full.

    Encoders are large, and loading them onto the device is slow: a miss also encodes coming prompts, up to half the budget.
    """

    def __init__(self, model: Family, directory: Path, budget_gb: float) -> None:
        self.model, self.budget = model, budget_gb * 2**30
        self.directory = directory / model.fingerprint
        self.directory.mkdir(parents=True, exist_ok=True)
        self.size = sum(file.stat().st_size for file in self.directory.glob("*.safetensors"))

    def encode(self, prompts: Sequence[Prompt], coming: Iterable[Prompt] = (), batch: int = ENCODE_BATCH) -> Cond:
        """Return the conditioning of `prompts`, in their order, on the CPU."""
        keys = [self._key(prompt) for prompt in prompts]
        known = {key: cond for key in dict.fromkeys(keys) if (cond := self._load(key)) is not None}
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in known}
        if missing:
            known |= self._encode(missing, batch)
            size = sum(tensor.nbytes for tensor in known[keys[0]])
            room = max(0, int(self.budget / 2 / size) - len(known))
            ahead = {key: prompt for prompt in coming if not self._path(key := self._key(prompt)).is_file()}
            self._encode({key: ahead[key] for key in list(ahead)[:room] if key not in known}, batch)
        return self.model.conditioning.concatenate([known[key] for key in keys])

    def _key(self, prompt: Prompt) -> str:
        pictures = [hashlib.sha256(image.read_bytes()).hexdigest() for image in prompt.images]
        return hashlib.sha256(json.dumps([prompt.text, *pictures]).encode()).hexdigest()[:32]

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}.safetensors"

    def _load(self, key: str) -> Cond | None:
        path = self._path(key)
        try:
            os.utime(path)  # it is young again
            return self.model.conditioning(**load_file(path))
        except FileNotFoundError:  # never written, or just deleted by another run
            return None

    def _encode(self, prompts: dict[str, Prompt], batch: int) -> dict[str, Cond]:
        """Encode prompts by their keys, store the conditioning of each and return it."""
        done: dict[str, Cond] = {}
        keys = list(prompts)
        batches = [keys[start : start + batch] for start in range(0, len(keys), batch)]
        for some in bar(batches, "encoding prompts"):
            cond = encode_prompts(self.model, [prompts[key] for key in some])
            for n, key in enumerate(some):
                done[key] = cond.take(torch.tensor([n]))
                self._store(self._path(key), done[key])
        return done

    def _store(self, path: Path, cond: Cond) -> None:
        """Write a file atomically: beside its place, then moved into it."""
        aside = path.with_suffix(f".{os.getpid()}")
        save_file(vars(cond), aside)
        self.size += aside.stat().st_size
        aside.replace(path)
        if self.size > self.budget:
            self._delete_oldest(path)

    def _delete_oldest(self, kept: Path) -> None:
        """Delete the files that were used least recently, down to 90 % of the budget, except `kept`."""
        for file in sorted(self.directory.glob("*.safetensors"), key=lambda file: file.stat().st_mtime):
            if self.size <= 0.9 * self.budget or file == kept:
                break
            self.size -= file.stat().st_size
            file.unlink(missing_ok=True)
