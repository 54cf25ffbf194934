"""The method section of a configuration: from nested keys to a method, and back."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError, ValidationInfo

from neighbor_grpo.config.keys import describe_method, fields_of
from neighbor_grpo.config.mistakes import one_line, unknown_key
from neighbor_grpo.errors import UserError, shown
from neighbor_grpo.methods import METHODS, Method, load_method

DEFAULT = "neighbor"
_load = cache(load_method)  # a file is executed once: two methods of one name are of one class
_NAMES: dict[type, str] = {kind: name for name, kind in METHODS.items()}  # and, once loaded, "file.py:Class"


def method_name(method: Method) -> str:
    """Return what `method.name` says of a method: its name in METHODS, or "path/to/file.py:Class"."""
    return _NAMES.get(type(method), type(method).__name__)


def read_method(section: Any, info: ValidationInfo) -> Method:
    """Return the method that nested keys describe: its name (default neighbor) and its own hyper-parameters."""
    if not isinstance(section, Mapping):
        if isinstance(section, Method):  # made in Python
            return section
        name = section if isinstance(section, str) and section in METHODS else DEFAULT
        raise UserError(f"method: write the keys of a method, for instance method.name={name}, not {shown(section)}")
    name = section.get("name", DEFAULT)
    if not isinstance(name, str):
        raise UserError(f"method.name must be a text, not {shown(name)}: choose {', '.join(METHODS)}")
    kind, of = _load(name), "" if name == DEFAULT else name
    if not fields_of(kind):
        raise UserError(f"method {name!r} has no fields that can be checked: make it a pydantic.dataclasses.dataclass")
    _NAMES[kind] = name
    keys = {key: value for key, value in section.items() if key != "name"}
    if unknown := next((key for key in keys if key not in fields_of(kind)), None):  # a class may not forbid it itself
        raise UserError(unknown_key(f"method.{unknown}", [key.name for key in describe_method(kind)], of))
    try:
        if info.mode == "json":  # of a file or an override, with strict types: see sources.checked
            return TypeAdapter(kind).validate_json(json.dumps(keys), strict=True)
        return TypeAdapter(kind).validate_python(keys)
    except ValidationError as error:
        raise UserError(one_line(error, kind, "method.", of)) from error


def write_method(method: Method) -> dict[str, Any]:
    """Return the keys of a method, as `read_method` takes them."""
    return TypeAdapter(type(method)).dump_python(method, mode="json") | {"name": method_name(method)}
