"""Prompts, their groups, their cached conditioning, and the seeds everything random comes from."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from neighbor_grpo.errors import UserError
from neighbor_grpo.models import Cond, FlowModel
from neighbor_grpo.scenes.world import PROMPTS as SCENES

SETS = {file.stem: file for file in sorted((Path(__file__).parent / "prompts").iterdir())}
TOGETHER = 32  # prompts that are encoded at once


def generator(*key: int) -> torch.Generator:
    """CPU generator that depends on the key alone, e.g. (seed, iteration, prompt): a run keeps no random state."""
    state = np.random.SeedSequence([int(k) for k in key]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


@dataclass(frozen=True)
class Prompt:
    text: str
    metadata: dict = field(default_factory=dict)

    @property
    def image(self) -> Path | None:
        """The picture that a video starts from."""
        return Path(self.metadata["image"]) if "image" in self.metadata else None


def read_prompts(path: str, held_out: bool = False) -> list[Prompt]:
    """One prompt a line (.txt), or one JSON object with "prompt" a line (.jsonl; other keys are metadata).

    The key "image" is a picture that a video starts from, a file beside the prompt file or an absolute path.  "scenes" is the
    bundled model's prompt set, the names in SETS are test sets of the field.  Raises UserError naming file and line.
    """
    scenes = SCENES / ("heldout.txt" if held_out else "train.txt")
    file = scenes if path == "scenes" else SETS.get(path, Path(path))
    if not file.is_file():
        raise UserError(f"no prompt file {path!r}: give a .txt or .jsonl file, or one of scenes, {', '.join(SETS)}")
    prompts = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        if file.suffix != ".jsonl":
            prompts.append(Prompt(line.strip()))
            continue
        try:
            row = json.loads(line)
            prompts.append(Prompt(row.pop("prompt"), row))
        except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
            raise UserError(
                f'{path} line {number} is not a JSON object with a "prompt": {line.strip()[:60]!r}'
            ) from error
        if not isinstance(prompts[-1].text, str) or not prompts[-1].text.strip():
            raise UserError(f'{path} line {number}: "prompt" must be a text that is not empty')
        if "image" in prompts[-1].metadata:
            prompts[-1].metadata["image"] = _picture(file, number, prompts[-1].metadata["image"])
    if not prompts:
        raise UserError(f"prompt file {path!r} is empty: write one prompt a line")
    return prompts


def _picture(file: Path, number: int, name) -> str:
    """Where the picture lies that line `number` names."""
    picture = file.parent / name if isinstance(name, str) else None
    if picture is None or not picture.is_file():
        raise UserError(f'{file} line {number}: no picture {name!r}: "image" is a file, by its path from {file.parent}')
    return str(picture)


def encoded(model: FlowModel, prompts: Sequence[Prompt]) -> Cond:
    """Conditioning by the prompts and the pictures they start from."""
    images = [prompt.image for prompt in prompts if prompt.image]
    if images and len(images) < len(prompts):
        raise UserError(f'{len(prompts) - len(images)} prompts have no "image", the others do: give it to all or to none')
    return model.encode([prompt.text for prompt in prompts], images)


def for_each(prompts: Sequence[Prompt], pictures: int) -> tuple[list[str], list[dict]]:
    """Texts and metadata of so many pictures of each prompt, in the order of images [P, S, ...] flattened."""
    rows = [prompt for prompt in prompts for _ in range(pictures)]
    return [prompt.text for prompt in rows], [prompt.metadata for prompt in rows]


def prompt_hash(prompts: Sequence[Prompt]) -> str:
    """Of texts and metadata in their order: two evaluations with the same hash saw the same prompts."""
    rows = json.dumps([(prompt.text, prompt.metadata) for prompt in prompts], sort_keys=True)
    return hashlib.sha256(rows.encode()).hexdigest()


@lru_cache(maxsize=4)
def _epoch(prompts: int, seed: int, number: int) -> list[int]:
    return torch.randperm(prompts, generator=generator(seed, number)).tolist()


def scheduled(prompts: int, per_iteration: int, iteration: int, seed: int) -> list[int]:
    """Indices of an iteration's prompts: epochs, each in an order of its own, one after the other."""
    places = range(iteration * per_iteration, (iteration + 1) * per_iteration)
    return [_epoch(prompts, seed, place // prompts)[place % prompts] for place in places]


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
        for part in (keys[start : start + chunk] for start in range(0, len(keys), chunk)):
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
