"""How a configuration is put together: presets below files, files below overrides ("method.sigma=0.2")."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from neighbor_grpo.config.methods import method_name
from neighbor_grpo.config.mistakes import one_line
from neighbor_grpo.config.origins import Sources, differences, with_origins
from neighbor_grpo.config.presets import Preset, check_family, family_of, read_preset
from neighbor_grpo.config.reading import DEEPEST, parse, read_values
from neighbor_grpo.config.schema import Config
from neighbor_grpo.config.sections import long_reward, long_trackers
from neighbor_grpo.errors import UserError, shown
from neighbor_grpo.models.settings import Section

S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Layer:
    """Hold nested keys of a configuration and where they came from; `preset`: the preset that they are the keys of."""

    origin: str
    values: dict[str, Any]
    preset: Preset | None = None


def load_config(
    path: str | Path | Sequence[str | Path] | None = None, overrides: Sequence[str] = (), presets: Sequence[str] = ()
) -> Config:
    """Load a configuration: the defaults, changed by presets, then by YAML files, then by overrides ("method.sigma=0.2").

    Raises UserError, one line with the remedy, for whatever is wrong.
    """
    layers = preset_layers(presets)
    for file in [path] if isinstance(path, str | Path) else path or []:
        layers += layers_of(read_values(file), str(file))
    return resolve([*layers, *(Layer("override", change(text)) for text in overrides)])


def layers_of(values: dict[str, Any], origin: str) -> list[Layer]:
    """Return the layers of nested keys: those of the presets named by their key `preset`, then their own."""
    values = dict(values)
    included = values.pop("preset", [])
    names = [included] if isinstance(included, str) else included
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"preset must be the name of a preset, or a list of names, not {shown(included)}")
    return [*preset_layers(names), Layer(origin, values)]


def preset_layers(names: Iterable[str]) -> list[Layer]:
    """Return the layers of presets, each after those that it includes."""
    layers: list[Layer] = []
    for name in names:
        preset = read_preset(name)
        if preset.is_comparison:
            raise UserError(f"preset {name} is a comparison: run it with neighbor-grpo compare {name}")
        *included, own = layers_of(preset.values, f"preset {name}")
        layers += [*included, Layer(own.origin, own.values, preset)]
    return layers


def resolve(layers: Sequence[Layer]) -> Config:
    """Put layers together, presets below everything else, the later over the earlier.

    Raises UserError for a preset of another method, or of another family where the model lies on this machine.
    """
    ordered = sorted(layers, key=lambda layer: layer.preset is None)  # stable
    if any(_lora(layer.values).get("path") for layer in ordered if layer.preset is None):
        ordered = [replace(layer, values=_without_rank(layer.values)) if layer.preset else layer for layer in ordered]
    values: dict[str, Any] = {}
    for layer in ordered:
        values = merge(values, layer.values)
    config = configured(values)
    used = list({layer.preset.name: layer.preset for layer in ordered if layer.preset}.values())
    method = method_name(config.method)
    for preset in used:
        if preset.method not in (None, method):
            raise UserError(
                f"preset {preset.name} is for method.name={preset.method}, and method.name is {method}: leave out one of them"
            )
    families = {preset.name: preset.family for preset in used if preset.family}
    if families and (family := family_of(config.model.path)):
        check_family(families, config.model.path, family)
    origins = [(layer.origin, _long_forms(layer.values)) for layer in ordered]
    loaded = with_origins(differences(config), origins)
    return config.with_sources(Sources(loaded, tuple(preset.name for preset in used), families))


def configured(values: dict[str, Any]) -> Config:
    """Check nested keys and return their configuration.  Raises UserError for the first mistake."""
    return checked(Config, values)


def checked(section: type[S], values: dict[str, Any]) -> S:
    """Check nested keys against a section and return it.  Raises UserError for the first mistake.

    Types are strict: true is not a number, and text is neither.  (A list of YAML is a tuple where the section has one, which
    pydantic's strict mode allows of JSON only.)
    """
    try:
        return section.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise UserError(one_line(error, section)) from error


# ---------------------------------------------------------------- nested keys


def override(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return nested keys changed by "key.of.it=value", one after another."""
    for text in overrides:
        values = merge(values, change(text))
    return values


def change(text: str) -> dict[str, Any]:
    """Return the nested keys of an override "key.of.it=value"."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"{shown(text)} is not an override: write key=value, for instance method.sigma=0.3")
    if key.strip() == "preset":
        raise UserError(f"a preset lies below all other values: write --preset {value[:100] or 'NAME'}")
    if len(parts) > DEEPEST:
        raise UserError(f"unknown key {shown(key)}: see neighbor-grpo train --help for the keys")
    if re.search(r"(^|\s)#", value) and not re.match(r"\s*['\"\[{]", value):
        raise UserError(f"{key.strip()}: in YAML a comment begins at the #: write the value in quotes, {key.strip()}='\"...\"'")
    nested: Any = "-" if value.strip() == "-" else parse(value, text)  # the standard input; to YAML it is an empty list
    for part in reversed(parts):
        nested = {part: nested}
    return nested


def merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return nested keys with `changes` over them; another method, or another reward to train on, replaces all of the old."""
    return _merged(_long_forms(values), _long_forms(changes))


def _long_forms(values: dict[str, Any]) -> dict[str, Any]:
    """Return nested keys with their short forms, of rewards and trackers, written out."""
    values = dict(values)
    if "trackers" in values:
        values["trackers"] = long_trackers(values["trackers"])
    if "reward" in values:
        values["reward"] = long_reward(values["reward"])
    if "watch" in values:
        section = values.get("reward", {})
        values["reward"] = {**(section if isinstance(section, dict) else {}), "watch": values.pop("watch")}
    return values


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, value in changes.items():
        old: Any = values.get(key)
        other_method = key == "method" and _method(value) not in (None, _method(old) or "neighbor")
        inside = isinstance(old, dict) and isinstance(value, dict) and not other_method and key != "train"
        merged[key] = _merged(old, value) if inside else value
    return merged


def _method(section: Any) -> Any:
    """Return the name in a method section, None without one."""
    return section.get("name") if isinstance(section, dict) else None


def _lora(values: Any) -> dict[str, Any]:
    """Return the section model.lora of nested keys, empty without one."""
    model = values.get("model")
    lora = model.get("lora") if isinstance(model, dict) else None
    return lora if isinstance(lora, dict) else {}


def _without_rank(values: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of a preset for a LoRA that has a rank of its own."""
    lora = {key: value for key, value in _lora(values).items() if key not in ("rank", "alpha", "targets")}
    return values | {"model": values["model"] | {"lora": lora}} if _lora(values) else values
