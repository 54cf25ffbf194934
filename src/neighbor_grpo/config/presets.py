"""Presets: configurations that the package brings along, used by name.

A preset is a YAML file under `presets/`.  Its name is its path without the suffix, and without the folders `methods/` and
`models/`: demo, dance_grpo, flux_dev, flux_dev/neighbor_8.  Beside a run's keys it may say

    preset:   names of other presets, applied below its own values
    family:   the diffusers pipeline class that it is for

`table.json` beside them says of each how far it was tried, and the memory that its plan counts.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neighbor_grpo.config.mistakes import nearest
from neighbor_grpo.config.reading import read_values
from neighbor_grpo.errors import UserError, shown
from neighbor_grpo.models.bundled import BUNDLED
from neighbor_grpo.models.directory import INDEX, read_index

ROOT = Path(__file__).parent.parent / "presets"
TABLE = ROOT / "table.json"  # tools/presets.py counts the memory
LEVELS = {
    "weights": "run on the published weights, with its curve in the documentation",
    "size": "run on random weights of the true size",
    "bundled": "run to its end on the bundled model, with its figures in the documentation",
    "contract": "its settings are read, and its method trains an iteration on tiny random weights of the model's true layout",
}


@dataclass(frozen=True)
class Preset:
    """Hold a preset: what it is, what it is for, and its nested keys."""

    name: str
    summary: str  # the first line of the file, a comment
    values: dict[str, Any]  # without `family`
    family: str | None = None
    level: str = "contract"  # one of LEVELS: how far it was tried
    memory: float | None = None  # GB (10^9 bytes) of one device, by the plan; None of a comparison

    @property
    def method(self) -> str | None:
        """Return the method that the preset is for; None where a model's preset may be trained with any method."""
        section = self.values.get("method")
        return section.get("name") if isinstance(section, dict) and not self.family else None

    @property
    def is_comparison(self) -> bool:
        """Return whether `compare` reads it, rather than `train`."""
        return "methods" in self.values


def preset_files() -> dict[str, Path]:
    """Return the file of every preset by name."""
    names = {file.relative_to(ROOT).with_suffix("").as_posix(): file for file in sorted(ROOT.rglob("*.yaml"))}
    return {name.removeprefix("methods/").removeprefix("models/"): file for name, file in names.items()}


def preset_names() -> list[str]:
    """Return the names of all presets, in the order of the alphabet."""
    return sorted(preset_files())


def preset_file(name: str) -> Path:
    """Return the file of a preset.  Raises UserError, with the nearest name, where there is none of that name."""
    files = preset_files()
    if name not in files:
        near = nearest(str(name), files)
        hint = f"did you mean {near}? " if near else ""
        raise UserError(f"unknown preset {shown(name)}: {hint}neighbor-grpo presets lists them")
    return files[name]


def read_preset(name: str) -> Preset:
    """Read a preset by its name."""
    file = preset_file(name)
    values = read_values(file)
    summary = file.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")
    family, row = values.pop("family", None), _table().get(name, {})
    return Preset(name, summary, values, family, row.get("level", "contract"), row.get("memory"))


def _table() -> dict[str, dict[str, Any]]:
    """Return {preset: {level, memory}}."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


def check_family(families: Mapping[str, str], path: str, family: str) -> None:
    """Raise UserError for a preset of another model family; `family`: the pipeline class of the model at `path`."""
    for preset, wanted in families.items():
        if wanted != family:
            raise UserError(
                f"preset {preset} is for a {wanted}, and model.path={path} is a {family}: leave out the preset, or choose "
                "another model.path"
            )


def family_of(path: str) -> str | None:
    """Return the pipeline class of a local pipeline directory or of a bundled model; None for anything else."""
    index = (BUNDLED.get(path) or Path(path)) / INDEX
    return read_index(index.parent).pipeline if os.path.isfile(index) else None
