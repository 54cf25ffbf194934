"""The command line.  A user's mistake is one line on stderr and exit code 2."""

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Any, NoReturn, TextIO

from neighbor_grpo import console
from neighbor_grpo.commands import (
    arena,
    compare,
    completion,
    doctor,
    evaluate,
    export,
    plan,
    presets,
    probe,
    report,
    rewards,
    sample,
    study,
    train,
    watch,
    worlds,
)
from neighbor_grpo.errors import UserError

COMMANDS = (
    train, plan, probe, doctor, study, compare, presets, sample, evaluate, arena, report, watch, export, rewards, worlds,
    completion,
)  # fmt: skip
SIGNALLED = 128  # exit codes above it are those of a process that a signal ended
STOPPED, CLOSED = SIGNALLED + 2, SIGNALLED + 13  # by SIGINT, by SIGPIPE


class Parser(argparse.ArgumentParser):
    """Parse a command line, key=value before and after options; a mistake is a UserError, as everywhere else."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse what is known, and add what stands behind an option to the positional arguments, which argparse leaves over."""
        namespace, rest = super().parse_known_args(args, namespace)
        several = next((action.dest for action in self._get_positional_actions() if action.nargs == "*"), None)
        if several and rest and not any(item.startswith("-") for item in rest):
            setattr(namespace, several, [*getattr(namespace, several), *rest])
            rest = []
        return namespace, rest

    def error(self, message: str) -> NoReturn:
        """Raise UserError with the message of argparse and where help is."""
        raise UserError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    _open_streams()
    console.silence_libraries()
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()  # here, where a closed pipe can be caught
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.EIO) and _is_closed(sys.stdout):
            _discard_output()
            return CLOSED
        if error.errno is None:  # raised by a library for reasons of its own
            raise
        place = f"{error.filename}: " if error.filename else ""
        console.mistake(f"{place}{error.strerror}: free space, or make it readable and writable, and try again")
        return 2


def entry() -> NoReturn:
    """Run one command and leave.  After a signal at once: Python would wait for threads, and a scorer may hang in one."""
    code = main()
    if code > SIGNALLED:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = parser().parse_args(argv)
        return arguments.command(arguments) or 0
    except UserError as error:
        console.mistake(str(error))
        return 2
    except KeyboardInterrupt:
        print("neighbor-grpo: stopped", file=sys.stderr)
        return STOPPED
    finally:
        _leave_ranks()


def _open_streams() -> None:
    """Let every text be printed: a closed stream loses it, and a terminal that lacks a character shows its code instead."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this process
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, open as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _leave_ranks() -> None:
    """Take the process group down: a rank that exits without doing so may abort."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_initialized():
        distributed.destroy_process_group()


def _is_closed(stream: TextIO) -> bool:
    """Return whether nobody reads a stream any more: after `| head -1`, or on a terminal that was closed."""
    try:
        print(file=stream, flush=True)
    except OSError:
        return True
    return False


def _discard_output() -> None:
    """Send what is still buffered nowhere; Python would write it at its end and fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    root = Parser(prog="neighbor-grpo", description="Align flow-matching image and video models with rewards.")
    root.add_argument("--version", action="version", version=f"neighbor-grpo {version('neighbor-grpo')}")
    root.set_defaults(root=root)
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return root
