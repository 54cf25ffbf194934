"""The command `report`: the page of a run, made again from what the run has recorded."""

import argparse

from neighbor_grpo.commands.options import Commands, place
from neighbor_grpo.console import say


def add(commands: Commands) -> None:
    """Add the command."""
    report = commands.add_parser(
        "report",
        help="write the page of a run again",
        description="Write report.html and samples/before_after.png again from metrics.jsonl and samples/. The run may be "
        "finished, stopped or still training.",
    )
    report.add_argument("run", type=place, metavar="RUN", help="directory of a run")
    report.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Write the page and print its file."""
    from neighbor_grpo.run import files, report

    files.read_config(arguments.run)  # raises where there is no run
    say(report.write(arguments.run))
