"""Where the values of a configuration came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from neighbor_grpo.config.keys import fields_of, written
from neighbor_grpo.config.methods import method_name

if TYPE_CHECKING:
    from neighbor_grpo.config.schema import Config

CODE = "code"  # the origin of a value that neither a file nor an override gave


@dataclass(frozen=True)
class Difference:
    """Describe a value that is not the default, and its origin: a file, "override", "preset NAME", or "code"."""

    key: str
    value: Any
    default: Any
    origin: str = field(default=CODE, compare=False)

    def __str__(self) -> str:
        """Return it as a line of a plan shows it."""
        return f"{self.key} = {written(self.value)} (default {written(self.default)})  {self.origin}"


@dataclass(frozen=True)
class Sources:
    """Hold what is known of a configuration beside its values.  Any two are equal: settings are compared by value alone."""

    loaded: tuple[Difference, ...] = field(default=(), compare=False)
    presets: tuple[str, ...] = field(default=(), compare=False)  # in the order in which they were applied
    families: Mapping[str, str] = field(default_factory=dict, compare=False)  # preset -> the pipeline class it is for


def differences(config: Config, loaded: Sequence[Difference] = ()) -> list[Difference]:
    """List the values that are not their defaults; the origin is that in `loaded`, unless the value changed since."""
    known = {difference.key: difference for difference in loaded}
    return [known[found.key] if known.get(found.key) == found else found for found in _differences(config)]


def _differences(section: object, prefix: str = "") -> Iterator[Difference]:
    for name, info in fields_of(section).items():
        value, key = getattr(section, name), prefix + name
        if key == "method" and (chosen := method_name(value)) != (default := method_name(info.default)):
            yield Difference("method.name", chosen, default)
        if fields_of(value) and info.default is not None:  # a section; its own defaults are those of its class
            yield from _differences(value, key + ".")
        elif value != info.default:
            yield Difference(key, _plain(value), _plain(info.default))


def _plain(value: Any) -> Any:
    return TypeAdapter(Any).dump_python(value, mode="json")


def with_origins(found: Sequence[Difference], layers: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[Difference, ...]:
    """Give each difference its origin: the last of the layers (origin, nested keys) that has its key."""
    return tuple(
        Difference(one.key, one.value, one.default, next((o for o, values in reversed(layers) if _has(values, one.key)), CODE))
        for one in found
    )


def _has(values: Any, key: str) -> bool:
    """Return whether nested keys hold a dotted key, or a value for a whole section above it."""
    for part in key.split("."):
        if not isinstance(values, Mapping):
            return True
        if part not in values:
            return False
        values = values[part]
    return True


def settings_lines(config: Config) -> list[str]:
    """Return the presets in force and every value that is not its default, as the lines that follow a plan."""
    presets = [f"preset      {', '.join(config.presets)}"] if config.presets else []
    heads = ["settings    ", *[" " * 12] * len(config.differences())]
    return presets + [head + str(one) for head, one in zip(heads, config.differences(), strict=False)]
