"""The keys of a configuration, described: name, type, default and meaning."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined


@dataclass(frozen=True)
class Key:
    """Describe one key; `default` is PydanticUndefined where the key is required."""

    name: str  # dotted, e.g. model.lora.rank
    kind: str  # e.g. int | null
    default: Any
    text: str

    @property
    def required(self) -> bool:
        """Return whether the key has no default."""
        return self.default is PydanticUndefined


def fields_of(section: object) -> Mapping[str, FieldInfo]:
    """Return the fields of a pydantic model or dataclass, of an instance or of the class; none for anything else."""
    return getattr(section, "__pydantic_fields__", {})


def describe(section: type, prefix: str = "", method: type | None = None) -> Iterator[Key]:
    """Yield every key of `section`, sections inside it included.  `method`: the method whose keys are listed."""
    for name, info in fields_of(section).items():
        kinds = () if get_origin(info.annotation) is list else (info.annotation, *get_args(info.annotation), type(info.default))
        inner = [kind for kind in kinds if fields_of(kind)]
        if not inner:
            yield Key(prefix + name, kind_of(info.annotation), info.default, info.description or "")
        elif name == "method" and method is not None:
            yield from describe_method(method, f"{prefix}{name}.")
        else:
            yield from describe(inner[0], f"{prefix}{name}.", method)


def describe_method(method: type, prefix: str = "method.") -> Iterator[Key]:
    """Yield every key of a method; its name comes first, whether the class declares it as a field or not."""
    if "name" not in fields_of(method):
        yield Key(prefix + "name", "str", "neighbor", "")
    yield from describe(method, prefix)


def kind_of(annotation: Any) -> str:
    """Return a type as a reader would write it: int | null, "euler" | "heun"."""
    if get_origin(annotation) is Literal:
        return " | ".join(json.dumps(choice) for choice in get_args(annotation))
    if get_origin(annotation) is Annotated:
        return kind_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(kind_of(part) for part in get_args(annotation))
    if annotation is type(None):
        return "null"
    inner = ["..." if part is Ellipsis else kind_of(part) for part in get_args(annotation)]
    name = getattr(annotation, "__name__", str(annotation))
    return f"{name}[{', '.join(inner)}]" if inner else name


def written(value: Any) -> str:
    """Return a value as YAML would write it on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool | list | tuple | dict):
        return json.dumps(value)
    return str(value)
