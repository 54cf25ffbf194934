"""What may be said elsewhere of the model that a run started from: its name on the hub and its licence, not its place here."""

import json
from pathlib import Path

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import HTTPError

from neighbor_grpo.models.bundled import BUNDLED
from neighbor_grpo.models.sources import source_of

_HUB = "https://huggingface.co"


def hub_id(path: str) -> str | None:
    """Return the name of a model on the hub; None for a directory and for a bundled model."""
    source = source_of(path)
    return None if source.place else source.name


def is_bundled(path: str) -> bool:
    """Return whether a model comes with this package."""
    return path in BUNDLED


def bundled_tokens(path: str) -> int:
    """Return the most tokens of a prompt in a bundled model: fewer than its pipeline takes for granted."""
    config = json.loads((BUNDLED[path] / "tokenizer_2" / "tokenizer_config.json").read_text(encoding="utf-8"))
    return int(config["model_max_length"])


def model_name(path: str) -> str:
    """Return what a model is called: its name on the hub, or that of its directory."""
    if is_bundled(path):
        return f"the bundled model {path} of neighbor-grpo"
    return hub_id(path) or Path(path).resolve().name


def licence(path: str) -> dict[str, str]:
    """Return license, license_name and license_link as the model's own card gives them; nothing where they are not known."""
    name = hub_id(path)
    try:
        data = ModelCard.load(name or (source_of(path).place or Path()) / "README.md", ignore_metadata_errors=True).data
    except (OSError, ValueError, HTTPError, yaml.YAMLError):  # no card, or none within reach
        return {}
    found = {key: data.get(key) for key in ("license", "license_name", "license_link")}
    if not isinstance(found["license"], str):
        return {}
    link = found["license_link"]
    if isinstance(link, str) and "://" not in link:  # a file beside the card
        found["license_link"] = f"{_HUB}/{name}/blob/main/{link}" if name else None
    return {key: value for key, value in found.items() if isinstance(value, str)}
