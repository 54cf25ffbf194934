"""Text files and paths that users write."""

import os
from pathlib import Path

from neighbor_grpo.errors import UserError, shown


def read_text(file: Path, what: str, most: int) -> str:
    """Read a UTF-8 file, with or without a byte order mark; every end of a line becomes "\\n".

    what: what the file is, for errors.  most: its largest size in bytes.  Raises UserError.
    """
    name = f"{what} {shown(str(file), 200)}"
    try:
        if file.stat().st_size > most:
            raise UserError(f"{name} is larger than {most:,} bytes: give a smaller file")
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror}): check the path and its permissions") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{name} is UTF-16: save it as UTF-8, for instance with iconv -f UTF-16 -t UTF-8")
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
