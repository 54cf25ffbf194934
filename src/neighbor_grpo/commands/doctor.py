"""The command `doctor`: what is wrong with a configuration before its run, or with a run."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from neighbor_grpo.commands.options import Commands, configuration, configuration_options, new_file, number
from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic

if TYPE_CHECKING:
    from neighbor_grpo.run.findings import Finding

STDOUT = Path("-")


def add(commands: Commands) -> None:
    """Add the command."""
    doctor = commands.add_parser(
        "doctor",
        help="find out what is wrong with a configuration before its run, or with a run",
        description="Given a configuration, check it in minutes on its real model and reward, without writing into a run "
        "directory. Given the directory of a run, say what happened in it. Exit code: 0 without warnings, 1 with warnings, 3 "
        "with errors, 2 for a mistake in the configuration.",
    )
    configuration_options(doctor)
    doctor.add_argument(
        "--minutes",
        type=number(float, 0, above=True),
        default=10.0,
        help="most time for the longest check, the search for a signal in the gradients (default %(default)g)",
    )
    doctor.add_argument(
        "--json", type=new_file, metavar="FILE", help="write the findings as JSON too; - for stdout, with the text on stderr"
    )
    doctor.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the findings as they are made; return the exit code."""
    subject, findings = _asked(arguments)
    from neighbor_grpo.training.doctor.report import as_json, exit_code, show

    found, stream = [], sys.stderr if arguments.json == STDOUT else sys.stdout
    for finding in findings:
        show(finding, stream)
        found.append(finding)
    if arguments.json:
        text = as_json(subject, found)
        if arguments.json == STDOUT:
            print(text, end="")
        else:
            atomic.write(arguments.json, text)
    return exit_code(found)


def _asked(arguments: argparse.Namespace) -> "tuple[str, Iterator[Finding]]":
    """Return what is checked, a run or a configuration, and its findings."""
    items = arguments.config
    runs = [item for item in items if "=" not in item and Path(item).is_dir()]
    if runs and (len(items) > 1 or arguments.preset):
        raise UserError(f"{runs[0]} is a run, which has its settings: leave out presets, files and key=value")
    if runs:
        from neighbor_grpo.training.doctor.after import findings_after

        return runs[0], findings_after(Path(runs[0]))
    config = configuration(arguments)
    from neighbor_grpo.training.doctor.before import findings_before

    return " ".join(items or arguments.preset or ["demo"]), findings_before(config, arguments.minutes)
