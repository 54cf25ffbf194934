"""The method section of a configuration: from nested keys to a method, and back."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from neighbor_grpo.config.mistakes import one_line
from neighbor_grpo.errors import UserError
from neighbor_grpo.methods import METHODS, Method, load_method

DEFAULT = "neighbor"
_NAMES: dict[type, str] = {kind: name for name, kind in METHODS.items()}  # and, once loaded, "file.py:Class"


def method_name(method: Method) -> str:
    """Return what `method.name` says of a method: its name in METHODS, or "path/to/file.py:Class"."""
    return _NAMES.get(type(method), type(method).__name__)


def read_method(section: Any) -> Method:
    """Return the method that nested keys describe: its name (default neighbor) and its own hyper-parameters."""
    if not isinstance(section, Mapping):
        if hasattr(section, "rollout"):  # made in Python
            return section
        raise UserError(f"method: write the keys of a method, for instance method.name={section}")
    name = section.get("name", DEFAULT)
    kind = load_method(name)
    _NAMES[kind] = name
    keys = {key: value for key, value in section.items() if key != "name"}
    try:
        return TypeAdapter(kind).validate_python(keys)
    except ValidationError as error:
        raise UserError(one_line(error, kind, "method.", "" if name == DEFAULT else name)) from error


def write_method(method: Method) -> dict[str, Any]:
    """Return the keys of a method, as `read_method` takes them."""
    return TypeAdapter(type(method)).dump_python(method, mode="json") | {"name": method_name(method)}
