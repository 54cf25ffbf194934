"""All writing: files and directories appear whole or not at all, and stay after a power failure.

    write(file, text)          one file
    writing(file)              one file, by a library that takes a path
    directory(place, kind)     a directory with a manifest: size and SHA-256 of each file
    append(file, line)         one line at the end of a file
    check(place, kind)         compare a directory with its manifest
    tidy(place)                finish or remove what a killed process left

What is being written stands beside its place as `.NAME.PID.partial`; a directory that is replaced is `.NAME.old` for a moment.
"""

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from neighbor_grpo.errors import UserError

T = TypeVar("T")
VERSION = 1  # of the layout of everything that a run keeps
MANIFEST = "manifest.json"
_PARTIAL = re.compile(r"\.(.+)\.([^.]+)\.(\d+)\.partial")  # name, host, process


class DamagedError(UserError):
    """Say which file or directory is damaged, and how."""


# ---------------------------------------------------------------- files


def write(file: Path, content: str | bytes) -> None:
    """Write a whole file; text as UTF-8."""
    with writing(file) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def writing(file: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a path beside `file` to write to, which replaces `file` at the end, or is deleted after an error.

    durable: wait until the disk has it, and remove what killed processes left of it; a file of many in a directory, which can
    be made again, need not.
    """
    aside = _aside(file)
    if durable:
        remove_dead(file.parent, file.name)
    try:
        with writing_errors(file):
            yield aside
            if durable:
                _sync(aside)
            aside.replace(file)
            if durable:
                _sync(file.parent)
    finally:
        aside.unlink(missing_ok=True)


def append(file: Path, line: str) -> None:
    """Append a line; what a killed process left of its last line is cut off first."""
    with file.open("ab+") as opened:
        opened.truncate(_whole_lines(opened.seek(0, os.SEEK_END), opened.read, opened.seek))
        opened.write(line.encode() + b"\n")
        opened.flush()
        os.fsync(opened.fileno())


def _whole_lines(size: int, read: Callable[[int], bytes], seek: Callable[[int], int]) -> int:
    """Return the bytes up to the end of the last whole line."""
    end = size
    while end:
        start = max(0, end - 4096)
        seek(start)
        if (at := read(end - start).rfind(b"\n")) >= 0:
            return start + at + 1
        end = start
    return 0


# ---------------------------------------------------------------- directories


@contextmanager
def directory(place: Path, kind: str) -> Iterator[Path]:
    """Yield a directory beside `place` to write into, which replaces it at the end, or is deleted after an error.

    kind: what the directory holds, for instance "checkpoint"; `check` asks for the same.
    """
    aside, old = _aside(place), place.with_name(f".{place.name}.old")
    remove_dead(place.parent, place.name)
    try:
        with writing_errors(place):
            aside.mkdir(parents=True)
            yield aside
            seal(aside, kind)
            if place.exists():
                place.rename(old)
            aside.rename(place)
            _sync(place.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def refuse_used(out: Path) -> None:
    """Raise UserError where a directory to be written, the option --out, would replace something."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: choose another --out")
    if out.exists() and not all(is_partial(path.name) for path in out.iterdir()):
        raise UserError(f"{out} is not empty: choose another --out")


def remove(place: Path) -> None:
    """Remove a directory; a kill leaves no half of it under its name."""
    aside = _aside(place)
    place.rename(aside)
    shutil.rmtree(aside)


def seal(place: Path, kind: str) -> None:
    """Write the manifest of a directory, after everything in it has reached the disk."""
    files = sorted(path for path in place.rglob("*") if path.is_file() and path != place / MANIFEST)
    for path in files:
        _sync(path)
    found = {path.relative_to(place).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)} for path in files}
    write(place / MANIFEST, json.dumps({"version": VERSION, "kind": kind, "files": found}, indent=1) + "\n")
    for folder in {path.parent for path in files} | {place}:
        _sync(folder)


def check(place: Path, kind: str) -> None:
    """Compare a directory with its manifest.  Raises DamagedError that names the first difference."""
    if not (place / MANIFEST).is_file():
        raise DamagedError(f"{place} is damaged: it has no {MANIFEST}")
    manifest = read_json(place / MANIFEST)
    if manifest.get("kind") != kind or not isinstance(manifest.get("files"), dict):
        raise DamagedError(f"{place} is damaged: its {MANIFEST} is not that of a {kind}")
    for name, wanted in manifest["files"].items():
        file = place / name
        if not file.is_file():
            raise DamagedError(f"{place} is damaged: {name} is missing")
        if file.stat().st_size != wanted["size"]:
            raise DamagedError(f"{place} is damaged: {name} has {file.stat().st_size} bytes, not {wanted['size']}")
        if _sha256(file) != wanted["sha256"]:
            raise DamagedError(f"{place} is damaged: {name} does not have the contents that were written")


def undamaged(folders: Iterable[Path], read: Callable[[Path], T]) -> Iterator[T]:
    """Yield what `read` makes of each directory, and leave out the damaged ones: pages show what is whole."""
    for folder in folders:
        try:
            found = read(folder)
        except UserError:
            continue
        yield found


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object of this version.  Raises DamagedError, or UserError for another version."""
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{file} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise DamagedError(f"{file} is damaged: it must hold an object, not a {type(found).__name__}")
    if found.get("version") != VERSION:
        raise UserError(
            f"{file} has version {found.get('version')!r}, and this release reads {VERSION}: use the one that wrote it"
        )
    return found


# ---------------------------------------------------------------- after a kill


def tidy(place: Path) -> None:
    """Finish or remove what killed processes left in the directory `place`: nobody else may be writing there."""
    for path in list(place.rglob(".*")):
        if _PARTIAL.fullmatch(path.name):
            _remove(path)
        elif path.name.endswith(".old") and path.is_dir():
            original = path.with_name(path.name[1 : -len(".old")])
            if original.exists():
                _remove(path)
            else:  # killed between the two renames
                path.rename(original)


def remove_dead(place: Path, name: str | None = None) -> None:
    """Remove what killed processes of this machine left in a directory that others write to as well; of one name, or all."""
    for path in list(place.iterdir()) if place.is_dir() else ():
        left = _PARTIAL.fullmatch(path.name)
        if left and left[1] == (name or left[1]) and left[2] == _host() and not alive(int(left[3])):
            _remove(path)


def is_partial(name: str) -> bool:
    """Return whether a name is that of something that is being written, or was left by a killed process."""
    return _PARTIAL.fullmatch(name) is not None


def alive(process: int) -> bool:
    """Return whether a process of this machine lives."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------- details


@contextmanager
def writing_errors(place: Path) -> Iterator[None]:
    """Turn what libraries raise when the disk fails into the OSError behind it, which names `place`."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        number = _os_error(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(place)) from error
    except OSError as error:
        if error.filename is None and error.errno:
            raise OSError(error.errno, os.strerror(error.errno), str(place)) from error
        raise


def _os_error(error: BaseException) -> int | None:
    """Return the number of the operating system's error that a library's error came from."""
    if said := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors
        return int(said[1])
    cause: BaseException | None = error
    while cause:  # torch.save into a file object
        if isinstance(cause, OSError) and cause.errno:
            return cause.errno
        cause = cause.__cause__ or cause.__context__
    return None


def _aside(place: Path) -> Path:
    return place.with_name(f".{place.name}.{_host()}.{os.getpid()}.partial")


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Wait until the disk has a file or the names in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
