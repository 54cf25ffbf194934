"""One owner: a directory or a file belongs to one process as long as that process lives."""

import errno
import fcntl
import json
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from neighbor_grpo.errors import UserError
from neighbor_grpo.files.atomic import alive

LOCK = ".lock"
_WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # file systems that do not lock, some network ones


class InUseError(UserError):
    """Say which process uses a directory or a file."""


@dataclass
class Lock:
    """Hold the lock of a directory or file; the operating system drops it when the process ends, however it ends."""

    descriptor: int | None

    @classmethod
    def take(cls, place: Path) -> "Lock":
        """Lock a directory by the file .lock in it, or a file by .NAME.lock beside it.

        The lock file names host and process: for the message, and for file systems that do not lock.  Raises InUseError where a
        living process has it.
        """
        file = place / LOCK if place.is_dir() else place.with_name(f".{place.name}{LOCK}")
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                taken = False
            except BlockingIOError:
                taken = True
            except OSError as error:
                if error.errno not in _WITHOUT_LOCKS:
                    raise
                taken = _lives(_owner(descriptor))
            if taken:
                raise InUseError(f"{place} is in use by {_worded(_owner(descriptor))}: wait until it ends, or stop it")
            if not _same(descriptor, file):  # its last owner has removed it in the meantime
                raise InUseError(f"{place} was in use a moment ago: try again")
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor)

    def release(self) -> None:
        """Give the directory or file free."""
        if self.descriptor is not None:
            with suppress(OSError):  # a full or read-only disk: the name that stays is of a process without the lock
                os.ftruncate(self.descriptor, 0)
            os.close(self.descriptor)
            self.descriptor = None

    def __del__(self) -> None:
        """Give it free when nothing refers to the lock any more."""
        self.release()


def owner_of(directory: Path) -> str | None:
    """Name the process that has a directory, without touching its lock; None where none is known to live."""
    try:
        descriptor = os.open(directory / LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        owner = _owner(descriptor)
    finally:
        os.close(descriptor)
    return _worded(owner) if _lives(owner) else None


def _owner(descriptor: int) -> dict[str, object]:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:  # not written yet, or given free
        return {}
    return found if isinstance(found, dict) else {}


def _lives(owner: dict[str, object]) -> bool:
    """Return whether the owner may still be at work; of another machine nobody can say that it is not."""
    process = owner.get("process")
    if not isinstance(process, int):
        return False
    return owner.get("host") != socket.gethostname() or alive(process)


def _worded(owner: dict[str, object]) -> str:
    return f"process {owner['process']} on {owner['host']}" if {"process", "host"} <= owner.keys() else "another process"


def _same(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
