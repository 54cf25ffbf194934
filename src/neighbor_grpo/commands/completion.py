"""The command `completion`: commands, options, presets and methods at the TAB key of a shell."""

import argparse
from collections.abc import Mapping
from typing import Any

from neighbor_grpo.commands.options import Commands
from neighbor_grpo.config import preset_names
from neighbor_grpo.errors import UserError
from neighbor_grpo.methods import METHODS


def add(commands: Commands) -> None:
    """Add the command."""
    completion = commands.add_parser(
        "completion",
        help="print the script that completes commands in a shell",
        description="Print the script that completes commands, options, presets, methods and files; no Python runs at the TAB "
        'key.  bash: eval "$(neighbor-grpo completion bash)" in ~/.bashrc.  zsh: write it to _neighbor-grpo in a directory of '
        "$fpath.",
    )
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    completion.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the script."""
    try:
        import shtab
    except ImportError:
        raise UserError("completion needs the package shtab: pip install 'neighbor-grpo[completion]'") from None
    _describe(arguments.root, shtab.FILE)
    print(shtab.complete(arguments.root, arguments.shell))


def _describe(parser: argparse.ArgumentParser, files: Mapping[str, Any]) -> None:
    """Say of every argument what may stand there: names, or else files."""
    names = {"preset": preset_names(), "method": list(METHODS)}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _describe(command, files)
        elif action.dest in names:
            action.choices = names[action.dest]
        elif action.nargs != 0 and not action.choices:
            action.complete = files  # type: ignore[attr-defined]  # what shtab looks for
