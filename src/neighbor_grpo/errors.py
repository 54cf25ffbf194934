"""Mistakes that users can correct, and the rules that find senseless settings."""

from pydantic import ConfigDict

# For dataclasses whose fields are settings: an unknown name is an error, and every number is finite.
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


class UserError(ValueError):
    """Say what is wrong and how to correct it; the command line prints it as one line and exits with 2."""


def printable(text: str) -> str:
    r"""Escape what a terminal would obey instead of show: control characters, marks that turn the direction of writing.

    >>> printable("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: object, most: int = 80) -> str:
    """Return a value as Python writes it: on one line, control characters escaped, at most about `most` characters.

    >>> shown("a\\nb"), shown("x" * 1000, 10)
    ("'a\\\\nb'", "'xxxxxxxxx... (1002 characters)")
    """
    text = repr(value[: most + 1] if isinstance(value, str) and len(value) > most else value)
    length = max(len(text), len(value) + 2 if isinstance(value, str) else 0)
    return text if length <= most else f"{text[:most]}... ({length} characters)"
