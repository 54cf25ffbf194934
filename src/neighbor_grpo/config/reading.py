"""YAML text and files, read into nested keys."""

from pathlib import Path
from typing import Any

import yaml

from neighbor_grpo.errors import UserError


def parse(text: str, where: str) -> Any:
    """Parse YAML text.  Raises UserError that names `where` it stands."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error


def read_values(path: str | Path) -> dict[str, Any]:
    """Read the nested keys of a YAML file.  Raises UserError where there is no such file, or it has no keys."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no configuration file {str(path)!r}: give a .yaml file, --preset NAME, or key=value")
    values = parse(path.read_text(encoding="utf-8"), str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must contain keys and values, not a {type(values).__name__}: write key: value")
    return values
