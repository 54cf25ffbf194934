"""Where the files of a model come from: a directory on this machine, or a repository of the hub."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from neighbor_grpo.errors import UserError, shown
from neighbor_grpo.files.text import expand_home
from neighbor_grpo.models import hub
from neighbor_grpo.models.bundled import BUNDLED
from neighbor_grpo.models.directory import check_shards, check_weights, weight_files

READ = ("*.json", "*.txt", "*.model", "*.jinja")  # configurations and tokenizers


@dataclass(frozen=True)
class Source:
    """Hold where the files of a model are: `place`, a directory here, or None for the repository `name` of the hub."""

    name: str
    revision: str | None
    place: Path | None

    def fetch(self, patterns: Sequence[str]) -> Path:
        """Return the directory that has the files of `patterns`, downloaded if need be.  Raises UserError."""
        return self.place or hub.fetch(self.name, self.revision, patterns)

    def fetch_weights(self, components: Mapping[str, str], variant: str | None) -> Path:
        """Return the directory that has the weights of some components too: {name of its folder: name of its class}.

        What is missing is known before anything is downloaded.  Raises UserError.
        """
        place = self.fetch(READ)
        files: list[str] = []
        for folder, kind in components.items():
            names = self._names(place, folder)
            convert = f"in Python: {kind}.from_pretrained({self.name!r}, subfolder={folder!r}, use_safetensors=False)"
            check_weights(str(place / folder), names, variant, f"{convert}.save_pretrained(DIRECTORY)")
            files += [f"{folder}/{name}" if folder else name for name in weight_files(names, variant)]
        if not self.place:
            self.fetch([*READ, *files])
        for folder in components:
            check_shards(place / folder, variant)
        return place

    def has(self, place: Path, path: str) -> bool:
        """Return whether there is a file, of a repository that was fetched to `place` also one that is not downloaded."""
        return (place / path).is_file() or (not self.place and path in hub.names_in(place, self.name, self.revision))

    def size(self, path: str) -> int:
        """Return the bytes of a file of a repository."""
        return hub.size_of(self.name, self.revision, path)

    def _names(self, place: Path, folder: str) -> list[str]:
        """Return the names of the files in a folder, of a repository those that are not downloaded too."""
        if self.place:
            return [path.name for path in (place / folder).iterdir() if path.is_file()]
        parents = hub.names_in(place, self.name, self.revision)
        return [path.rpartition("/")[2] for path in parents if path.rpartition("/")[0] == folder]


def source_of(path_or_id: str | Path, revision: str | None = None) -> Source:
    """Return the source of a pipeline: a directory, one of BUNDLED, or else a repository.

    Raises UserError for a file, and for a revision of what is not a repository.
    """
    name = str(path_or_id)
    place = BUNDLED.get(name) or Path(expand_home(name))
    if os.path.isfile(place):
        raise UserError(
            f"{shown(name, 200)} is a file: give a pipeline in model.path, and its transformer's file in model.transformer"
        )
    if not os.path.isdir(place):
        return Source(name, revision, None)
    if revision:
        raise UserError(f"model.revision={revision} is for a repository of the hub: leave it out, {shown(name)} is a directory")
    return Source(name, None, place)
