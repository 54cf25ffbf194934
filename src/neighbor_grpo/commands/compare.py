"""The command `compare`: several methods and seeds side by side."""

import argparse
import re
import sys

from neighbor_grpo.commands.options import Commands, comparison_of, comparison_options, key_lines
from neighbor_grpo.compare.settings import Comparison, with_budgets
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
    nth = slice(int(match[1]) - 1, None, int(match[2]))
    comparison, entries = comparison_of(arguments)
    names = ", ".join(entry.name for entry in entries[nth])
    say(f"{names or 'no method in this part'}: seeds {', '.join(map(str, comparison.seeds))}, in {comparison.run_dir}")
    entries = with_budgets(comparison, entries)  # libraries load here, for seconds
    from neighbor_grpo.compare.page import write
    from neighbor_grpo.compare.runs import run_all
    from neighbor_grpo.training.signals import SignalError

    try:
        run_all(comparison, entries[nth])
    except SignalError as stop:
        say(f"neighbor-grpo: {stop}", sys.stderr)
        return 128 + stop.signum
    say(write(comparison, entries))
    return 0
