"""The file of a LoRA: where it lies, and what its header says.  No library for tensors is imported here.

FILE.safetensors            any name; .bin is read as well, its tensors only
FOLDER                      with one such file, in itself or below it; peft's adapter_config.json is beside it
user/repo, user/repo/FILE   on the hub
"""

import glob
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from neighbor_grpo.errors import UserError, shown
from neighbor_grpo.files.text import expand_home
from neighbor_grpo.models.directory import check_file, read_header, read_object

CONFIG, PEFT = "adapter_config.json", "adapter_model"  # the names of peft
DEEPEST = 3  # levels of folders that are looked into
SECOND = "transformer_2"  # folder of the LoRA of a second expert
_HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(/.*)?")
_SUFFIXES = (".safetensors", ".bin")  # the first is preferred
# Starts that change the weights below the LoRA, so the file alone does not say what the layers were.
_MOVED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class AdapterFile:
    """Hold the file with the weights of a LoRA, and peft's settings for it where there are any."""

    weights: Path
    config: Path | None
    second: str  # where the LoRA of a second expert would be

    @property
    def name(self) -> str:
        """Return the path for messages."""
        return shown(str(self.weights), 200)

    def settings(self) -> Mapping[str, Any]:
        """Return peft's settings: rank and alpha by layer, in adapter_config.json or in the header of diffusers' files.

        Empty where the file has none.  Raises UserError for settings that are not those of a plain LoRA.
        """
        if self.config:
            found = read_object(self.config)
        elif self.weights.stem == PEFT:
            raise UserError(f"{self.name} lacks {CONFIG}, which says how strong it is: put it into the same folder")
        else:
            found = self._metadata()
        _check_plain(self.name, found)
        return found

    def _metadata(self) -> dict[str, Any]:
        """Return the settings that diffusers and this package keep in the header."""
        text = (read_header(self.weights).get("__metadata__") or {}) if self.weights.suffix == _SUFFIXES[0] else {}
        try:
            found = json.loads(text.get("lora_adapter_metadata", "{}"))
            return {key.removeprefix("transformer."): value for key, value in found.items() if key.startswith("transformer.")}
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise UserError(f"{self.name}: its lora_adapter_metadata are not JSON: write the file again") from error


def _check_plain(name: str, settings: Mapping[str, Any]) -> None:
    """Raise UserError for peft's other adapters."""
    kind = settings.get("peft_type") or "LORA"
    found = [kind] if kind != "LORA" else []
    found += [
        name for key, name in (("use_dora", "DoRA"), ("use_qalora", "QALoRA"), ("use_bdlora", "BD-LoRA")) if settings.get(key)
    ]
    if found:
        raise UserError(
            f"{name} is a {shown(found[0])[1:-1]}, and only plain LoRAs are read: merge it into the model's weights"
        )
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_MOVED_BASE):
        raise UserError(
            f"{name} was started by {shown(start)[1:-1]}, which changed the weights below it: convert it to a plain LoRA "
            "(peft: save_pretrained with path_initial_model_for_weight_conversion)"
        )


def find_adapter(source: str | Path) -> AdapterFile:
    """Find the file of a LoRA.  Raises UserError where there is none, several, or one that is damaged."""
    if not str(source):
        raise UserError("the path of a LoRA is empty: give a file, its folder, or a hub id")
    path = Path(os.path.abspath(expand_home(str(source))))
    try:
        if os.path.isdir(path):
            levels = ("/".join("*" * n) for n in range(1, DEEPEST + 1))
            names = {file.relative_to(path).as_posix(): file for level in levels for file in path.glob(level) if file.is_file()}
            found = names[_choose(names, path)]
        elif os.path.isfile(path):
            found = path
            if path.suffix not in _SUFFIXES:
                raise UserError(f"{shown(str(path), 200)} is neither .safetensors nor .bin: give the file of a LoRA")
        else:
            return _download(str(source))
    except OSError as error:
        raise UserError(
            f"{shown(str(path), 200)} cannot be read ({error.strerror}): check the path and its permissions"
        ) from error
    config = found.with_name(CONFIG)
    own = config if config.is_file() and found.stem == PEFT else None
    return _checked(AdapterFile(found, own, str(found.with_name(SECOND))))


def find_second(first: AdapterFile) -> AdapterFile:
    """Find the file of the LoRA for a second expert.  Raises UserError."""
    if os.path.isabs(first.second) and not os.path.isdir(first.second):
        raise UserError(
            f"{first.name} has no folder {SECOND} beside it: this model has 2 experts, and a LoRA for it is a folder with that "
            f"of the first, and that of the second in {SECOND}"
        )
    return find_adapter(first.second)


def check_adapter(source: str | Path) -> None:
    """Raise UserError where the file of a LoRA cannot be found on this machine; the hub is not asked."""
    if os.path.exists(expand_home(str(source))) or not _HUB.fullmatch(str(source)):
        find_adapter(source)


def _checked(file: AdapterFile) -> AdapterFile:
    for part in (file.weights, file.config):
        if part:
            check_file(part, again="download it again")
    return file


def _choose(names: Iterable[str], place: Path | str) -> str:
    """Choose the one file of a LoRA among the paths in a folder: of those that lie least deep."""
    paths = [PurePosixPath(name) for name in names]
    paths = [path for path in paths if path.suffix in _SUFFIXES and SECOND not in path.parts[:-1]]
    least = min((len(path.parts) for path in paths), default=0)
    paths = [path for path in paths if len(path.parts) == least]
    best = [path for path in paths if path.suffix == _SUFFIXES[0]] or paths
    if not best:
        raise UserError(f"{shown(str(place), 200)} has no .safetensors: give the file of a LoRA, or its folder")
    if len(best) > 1:
        listed = ", ".join(shown(str(path)) for path in sorted(best)[:5]) + (", ..." if len(best) > 5 else "")
        raise UserError(f"{shown(str(place), 200)} has {len(best)} files that may be the LoRA, {listed}: give one of them")
    return str(best[0])


def _download(source: str) -> AdapterFile:
    """Find the file of a LoRA on the hub, and download it unless it is there already."""
    missing = f"no LoRA at {shown(source, 200)}: give a file, its folder, or a hub id (user/repo, user/repo/FILE)"
    if not _HUB.fullmatch(source):
        raise UserError(missing)
    from neighbor_grpo.models.hub import fetch, names_in  # late: files on this machine need no library for networks

    user, repo, *inside = source.strip("/").split("/")
    name, within = f"{user}/{repo}", "/".join(inside)
    names = names_in(fetch(name, None, [CONFIG]), name, None)
    if within not in names:
        folder = f"{within}/" if within else ""
        within = folder + _choose([one.removeprefix(folder) for one in names if one.startswith(folder)], source)
    path = PurePosixPath(within)
    beside = str(path.with_name(CONFIG))
    config = beside if path.stem == PEFT and beside in names else None
    place = fetch(name, None, [glob.escape(part) for part in (within, config) if part])
    second = str(PurePosixPath(name, path).with_name(SECOND))
    return _checked(AdapterFile(place / within, place / config if config else None, second))


def copy_adapter(source: str | Path, place: Path) -> None:
    """Copy the files of a LoRA into a new folder, from which it can be read as from its source."""
    place.mkdir(parents=True)
    file = find_adapter(source)
    for part in (file.weights, file.config):
        if part:
            shutil.copyfile(part, place / part.name)
    if os.path.isdir(second := file.weights.with_name(SECOND)):
        copy_adapter(second, place / SECOND)
