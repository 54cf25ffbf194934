"""YAML text and files, read into nested keys and written from them.

Of YAML this is what settings need: text, numbers, true and false, null, lists and keys.  Numbers are written as in most
languages (1e-4 is one; 1:30 and 010 are text), every key is a text that stands once, and a document is small.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from neighbor_grpo.errors import UserError, printable, shown
from neighbor_grpo.files.text import read_text

MOST_BYTES, MOST_VALUES, DEEPEST = 2**16, 4000, 24  # of a document, with aliases written out
LARGEST = 2**63 - 1  # whole number
_CORE = "tag:yaml.org,2002:"
_RESOLVERS = {  # what text without quotes means, by its first character
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
    "int": (r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7_]+)", "-+0123456789"),
    "float": (
        r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9]+|[0-9][0-9_]*(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
    "merge": (r"<<", "<"),
}


class _Refusal(ConstructorError):
    """Say which valid YAML is not read as settings."""

    def __init__(self, message: str, node: Any = None) -> None:
        super().__init__(None, None, message, node and node.start_mark)


class _Loader(yaml.SafeLoader):
    """Compose nodes up to the limits, and construct the values of the core types only."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012, declared so by pyyaml
    count = depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Compose a node.  Raises _Refusal beyond the limits, and for a tag."""
        self.count, self.depth = self.count + 1, self.depth + 1
        if self.count > MOST_VALUES or self.depth > DEEPEST:
            raise _Refusal(f"more than {MOST_VALUES} values or {DEEPEST} levels")
        event = self.peek_event()
        if getattr(event, "tag", None):
            raise _Refusal("tags (!) are not read: write the value alone, text in quotes", event)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_number(self, node: ScalarNode) -> int | float:
        """Construct a number.  Raises _Refusal unless it is finite, and a whole one has 64 bits."""
        text, whole = node.value.replace("_", "").lower(), node.tag == _CORE + "int"
        try:
            value = int(text, 0) if whole else float(text.replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            raise _Refusal(f"{shown(node.value)} is not a number", node) from None
        if not abs(value) < float("inf") or (whole and abs(value) > LARGEST):
            raise _Refusal(f"{shown(node.value)} is out of range: write a number of at most 64 bits", node)
        return value


class _Dumper(yaml.SafeDumper):
    """Write text in quotes wherever `_Loader` would read it as something else, and everything in full."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012, declared so by pyyaml

    def ignore_aliases(self, data: Any) -> bool:
        """Return True: what occurs twice is written twice."""
        return True


for _kind in (_Loader, _Dumper):
    for _name, (_pattern, _first) in _RESOLVERS.items():
        _kind.add_implicit_resolver(_CORE + _name, re.compile(rf"(?:{_pattern})\Z"), [*_first, ""])
for _name in ("int", "float"):
    _Loader.add_constructor(_CORE + _name, _Loader.construct_number)


def parse(text: str, where: str) -> Any:
    """Parse YAML text.  Raises UserError that names `where` it stands."""
    where = where if len(where) <= 200 and where.isprintable() else shown(where)
    if len(text) > MOST_BYTES:
        raise UserError(f"{where} is longer than {MOST_BYTES:,} characters: settings are shorter")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node)
        return loader.construct_document(node)
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split()).replace('in "<unicode string>", ', "at ")
        said = "" if isinstance(error, _Refusal) else " is not valid YAML"
        raise UserError(f"{where}{said}: {printable(reason[:300])}") from error


def _check(root: Node) -> None:
    """Raise _Refusal for a key that is not text or stands twice, a control character, or too much behind aliases."""
    sizes: dict[int, int] = {}
    _size(root, sizes)

    for node in _nodes(root):
        if isinstance(node, ScalarNode) and re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", node.value):
            raise _Refusal(f"{shown(node.value)} holds a character that is not text", node)
        keys = [key for key, _ in node.value] if isinstance(node, MappingNode) else []
        for key in keys:
            if not isinstance(key, ScalarNode) or key.tag not in (_CORE + "str", _CORE + "merge"):
                written = shown(key.value) if isinstance(key, ScalarNode) else "a list or section"
                raise _Refusal(f"the key {written} is not text: write it in quotes", key)
        texts = [key.value for key in keys]
        if len(set(texts)) < len(texts):
            twice = next(key for n, key in enumerate(keys) if key.value in texts[:n])
            raise _Refusal(f"the key {shown(twice.value)} stands twice: leave out one", twice)


def _size(node: Node, sizes: dict[int, int]) -> int:
    """Return how many values a node holds with its aliases written out."""
    if id(node) not in sizes:
        sizes[id(node)] = MOST_VALUES + 1  # what an alias inside its own anchor comes to
        sizes[id(node)] = 1 + sum(_size(child, sizes) for child in _children(node))
    if sizes[id(node)] > MOST_VALUES:
        raise _Refusal(f"more than {MOST_VALUES} values with aliases written out", node)
    return sizes[id(node)]


def _nodes(root: Node) -> Iterator[Node]:
    """Iterate over all nodes, each once."""
    seen, waiting = {id(root)}, [root]
    while waiting:
        yield (node := waiting.pop())
        new = [child for child in _children(node) if id(child) not in seen]
        seen.update(map(id, new))
        waiting += new


def _children(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, SequenceNode) else []


def read_values(path: str | Path) -> dict[str, Any]:
    """Read the nested keys of a YAML file.  Raises UserError where there is no such file, or it has no keys."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no configuration file {shown(str(path))}: give a .yaml file, --preset NAME, or key=value")
    values = parse(read_text(path, "configuration file", MOST_BYTES), str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must contain keys and values, not a {type(values).__name__}: write key: value")
    return values


def write_values(values: dict[str, Any]) -> str:
    """Return nested keys as YAML text that `parse` reads back as the same."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
