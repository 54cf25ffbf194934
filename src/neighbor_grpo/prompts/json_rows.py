"""Rows of JSON: a .jsonl file, an object or a text a line; a .json file, one array of them."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from neighbor_grpo.errors import UserError, shown
from neighbor_grpo.prompts.columns import Row

DEEPEST = 50  # levels of a row
ROW = "a JSON object, or a text in quotes"


def json_lines(text: str, name: str) -> list[tuple[str, Row]]:
    """Return the rows of JSON lines.  Raises UserError that names the line."""
    lines = [(f"{name} line {number}", line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if lines and lines[0][1][0] == "[":
        raise UserError(f"{lines[0][0]} begins an array: name a file of one JSON array .json; {ROW} a line is a .jsonl file")
    return _rows((place, _parsed(place, line)) for place, line in lines)


def json_array(text: str, name: str) -> list[tuple[str, Row]]:
    """Return the rows of one JSON array.  Raises UserError that names the item."""
    found = _parsed(name, text) if text.strip() else []
    if not isinstance(found, list):
        keys = f", not one object with the keys {shown(', '.join(found), 100)}" if isinstance(found, dict) else ""
        raise UserError(f"{name} must be one JSON array, of texts or of objects{keys}: JSON lines are a .jsonl file")
    return _rows((f"{name} item {number}", value) for number, value in enumerate(found, 1))


def columns_of(rows: Iterable[tuple[str, Row]]) -> Sequence[str]:
    """Return the keys of all rows, each once, in their order."""
    return list(dict.fromkeys(key for _, row in rows for key in row))


def _rows(values: Iterable[tuple[str, Any]]) -> list[tuple[str, Row]]:
    """Return each value as a row; a text is the only column of its row."""
    rows, kind = list(values), None
    for place, value in rows:
        kind = kind or type(value)
        if kind not in (str, dict):
            raise UserError(f"{place} is not {ROW}: {shown(value, 60)}")
        if not isinstance(value, kind):
            raise UserError(f"{place} is not {'a text' if kind is str else 'a JSON object'} as the rows before it are")
    return [(place, {"prompt": value} if isinstance(value, str) else value) for place, value in rows]


def _parsed(place: str, text: str) -> Any:
    """Return a JSON value, all of which can be written as JSON in UTF-8 again."""
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse)
        if not _is_flat(value):
            raise UserError(f"{place} has more than {DEEPEST} levels: write fewer")
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except _KeyError as error:
        raise UserError(f"{place} has the key {error} twice: leave out one") from error
    except UserError:
        raise
    except UnicodeEncodeError as error:  # half of a pair of \\ud83d\\ude00
        raise UserError(f"{place} holds half a character ({error.object[error.start]!a}): write it whole") from error
    except json.JSONDecodeError as error:
        remedy = "JSON lines are a .jsonl file" if error.msg == "Extra data" else f"write {ROW}"
        at = f"line {error.lineno} column {error.colno}"
        raise UserError(f"{place} is no JSON ({error.msg} at {at}, {shown(text[error.pos :], 60)}): {remedy}") from error
    except (ValueError, RecursionError) as error:  # NaN, a number of thousands of digits, deep nesting
        raise UserError(f"{place} is not {ROW} that can be read: {shown(text, 60)}") from error
    return value


class _KeyError(Exception):
    """Say which key stands twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise _KeyError(shown(next(name for name in names if names.count(name) > 1)))
    return row


def _is_flat(value: Any, levels: int = DEEPEST + 1) -> bool:
    """Return whether a JSON value has at most so many levels."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_flat(part, levels - 1) for part in inner)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
