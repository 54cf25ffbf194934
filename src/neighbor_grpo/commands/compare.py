"""neighbor-grpo compare"""

import argparse
import re
import sys

from neighbor_grpo.commands.options import keys
from neighbor_grpo.compare.settings import Comparison, load_comparison
from neighbor_grpo.errors import UserError


def add(commands) -> None:
    compare = commands.add_parser(
        "compare",
        help="several methods and seeds side by side",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train every method of a comparison on every seed and set them side by side. What is finished is not "
        "run again,\nwhat was stopped goes on.",
        epilog="keys:\n" + keys(Comparison),
    )
    compare.add_argument("config", metavar="CONFIG", help="a YAML file, for instance configs/scenes/compare.yaml")
    compare.add_argument("overrides", nargs="*", metavar="key=value", help="changes to it")
    compare.add_argument(
        "--part",
        default="1/1",
        metavar="K/N",
        help="only every N-th method from the K-th on, to share the work among N commands (default %(default)s)",
    )
    compare.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    from neighbor_grpo.compare.page import write
    from neighbor_grpo.compare.runs import run_all
    from neighbor_grpo.training.trainer import SignalError

    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", arguments.part)
    if not match or int(match[1]) > int(match[2]):
        raise UserError(f"--part takes K/N with K from 1 to N, for instance 2/4, not {arguments.part!r}")
    comparison, entries = load_comparison(arguments.config, arguments.overrides)
    try:
        run_all(comparison, entries[int(match[1]) - 1 :: int(match[2])])
    except SignalError as stop:
        print(f"neighbor-grpo: {stop}", file=sys.stderr)
        return 128 + stop.signum
    print(write(comparison, entries))
    return 0
