"""The wording of a wrong configuration: one line that names the key and what to do."""

import difflib
from collections.abc import Callable, Iterable

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from neighbor_grpo.config.keys import describe
from neighbor_grpo.errors import UserError, shown


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most like `name`, None if none is like it."""
    if len(name) > 200:
        return None
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)), None)


def one_line(error: ValidationError, section: type, prefix: str = "", of: str = "") -> str:
    """Word the first mistake in `section`, whose keys start with `prefix`; `of`: the method whose keys they are."""
    first, *others = error.errors()
    keys = [key.name for key in describe(section, prefix)]
    place = prefix + ".".join(str(part) for part in first["loc"])
    word = _WORDINGS.get(first["type"], _wrong_value)
    more = f" (and {len(others)} more)" if others else ""
    return word(place, first, keys, of) + more


def unknown_key(place: str, keys: Iterable[str], of: str = "") -> str:
    """Word an unknown key, with the nearest known one; `of`: the method whose keys they are."""
    sections = {key.rsplit(".", depth)[0] for key in keys for depth in (1, 2) if "." in key}
    near = nearest(place, [*keys, *sections])
    hint = f"did you mean {near}?" if near else "see neighbor-grpo train --help for the keys"
    if near == place:  # with the dots that the command line takes
        hint = f"write {place.rpartition('.')[2]} in the section {place.rpartition('.')[0]}"
    return f"unknown key {_plain(place)}{f' of {of}' if of else ''}: {hint}"


def _plain(text: str) -> str:
    """Return a part of a key for a message: as it is, unless it is long or cannot be printed."""
    return text if len(text) <= 100 and text.isprintable() else shown(text)


def _unknown_key(place: str, first: ErrorDetails, keys: list[str], of: str) -> str:
    return unknown_key(place, keys, of)


def _missing(place: str, first: ErrorDetails, keys: list[str], of: str) -> str:
    return f"{_plain(place)} is required: give {_plain(place)}=VALUE"


def _not_a_choice(place: str, first: ErrorDetails, keys: list[str], of: str) -> str:
    choices = first["ctx"]["expected"].replace("'", "")
    return f"{_plain(_known(place, keys))}: unknown value {shown(first['input'])}: choose {choices}"


def _refused(place: str, first: ErrorDetails, keys: list[str], of: str) -> str:
    """Word an error that our own check raised: the text of a UserError already names the key."""
    reason = first["ctx"]["error"]
    return str(reason) if isinstance(reason, UserError) else _wrong_value(place, first, keys, of)


def _wrong_value(place: str, first: ErrorDetails, keys: list[str], of: str) -> str:
    known, message = _known(place, keys), first["msg"].removeprefix("Value error, ")
    if known not in keys and first["type"] == "value_error":  # of a whole section: the message names its keys
        return message
    for formal, plain in _PLAIN.items():
        message = message.replace(formal, plain)
    return f"{_plain(known)}: {message[0].lower() + message[1:]}, not {shown(first['input'])}"


def _known(place: str, keys: list[str]) -> str:
    """Return the key that a place lies in; pydantic adds the branch of a union or the index of a list behind it."""
    return max((key for key in keys if place == key or place.startswith(key + ".")), key=len, default=place)


_PLAIN = {"an object": "a section of keys", "a valid array": "a list", " after validation, not 0": ""}
_Wording = Callable[[str, ErrorDetails, list[str], str], str]
_WORDINGS: dict[str, _Wording] = {
    "extra_forbidden": _unknown_key,
    "unexpected_keyword_argument": _unknown_key,
    "missing": _missing,
    "literal_error": _not_a_choice,
    "value_error": _refused,
}
