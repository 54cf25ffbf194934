"""Text files and paths that users write."""

import os
from pathlib import Path

from neighbor_grpo.errors import UserError, shown

_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read_text(file: Path, what: str, most: int) -> str:
    """Read a text file of at most `most` bytes; `what` it is, for errors.  Raises UserError."""
    name = f"{what} {shown(str(file), 200)}"
    return decode(read_bytes(file, name, most), name)


def read_bytes(file: Path, name: str, most: int) -> bytes:
    """Read a file of at most `most` bytes.  Raises UserError."""
    try:
        if file.stat().st_size > most:
            raise UserError(f"{name} is larger than {most:,} bytes: give a smaller file")
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror}): check the path and its permissions") from error


def decode(data: bytes, name: str) -> str:
    """Decode UTF-8, with or without a byte order mark; every end of a line becomes "\\n".  Raises UserError."""
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            raise UserError(f"{name} is {encoding}: save it as UTF-8, for instance with iconv -f {encoding} -t UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{name} line {line} is not UTF-8: save it as UTF-8, for instance with iconv -f CP1252 -t UTF-8"
        ) from error
    if "\0" in text:
        raise UserError(f"{name} holds NUL bytes, so it is not a text file in UTF-8: save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def expand_home(path: str) -> str:
    """Replace ~ at the start of a path by the home directory, as a shell does.  Raises UserError where there is none."""
    if not path.startswith("~"):
        return path
    expanded = os.path.expanduser(path)
    if expanded.startswith("~") or (os.environ.get("HOME") == "" and path.split("/")[0] == "~"):
        raise UserError(f"{shown(path)}: {path.split('/')[0][:80]} has no home directory here: write the whole path")
    return expanded
