"""The command `compare`: several methods and seeds side by side."""

import argparse
import re
import sys

from neighbor_grpo.commands.options import Commands, comparison_of, comparison_options, key_lines
from neighbor_grpo.compare.settings import Comparison
from neighbor_grpo.config import describe
from neighbor_grpo.console import say
from neighbor_grpo.errors import UserError


def add(commands: Commands) -> None:
    """Add the command."""
    compare = commands.add_parser(
        "compare",
        help="train several methods and seeds, side by side",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train every method of a comparison on every seed and set them side by side.\nFinished runs "
        "are kept, stopped runs are resumed.",
        epilog="keys:\n" + key_lines(list(describe(Comparison))),
    )
    comparison_options(compare, "scenes/compare")
    compare.add_argument(
        "--part",
        default="1/1",
        metavar="K/N",
        help="run only every N-th method, from the K-th on, to divide the work over N commands (default %(default)s)",
    )
    compare.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Run what is not finished and write the report."""
    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", arguments.part)
    if not match or int(match[1]) > int(match[2]):
        raise UserError(f"--part takes K/N with K from 1 to N, for instance 2/4, not {arguments.part!r}")
    comparison, entries = comparison_of(arguments)
    from neighbor_grpo.compare.page import write
    from neighbor_grpo.compare.runs import run_all
    from neighbor_grpo.training.signals import SignalError

    try:
        run_all(comparison, entries[int(match[1]) - 1 :: int(match[2])])
    except SignalError as stop:
        say(f"neighbor-grpo: {stop}", sys.stderr)
        return 128 + stop.signum
    say(write(comparison, entries))
    return 0
