"""The command `study`: what the gradients of methods are worth, before anything is trained."""

import argparse
import json
from dataclasses import asdict

from neighbor_grpo.commands.options import Commands, comparison_of, comparison_options, new_file, number
from neighbor_grpo.compare.settings import with_budgets
from neighbor_grpo.console import say
from neighbor_grpo.files import atomic


def add(commands: Commands) -> None:
    """Add the command."""
    study = commands.add_parser(
        "study",
        help="measure the gradients of methods before training: signal, direction, effect of a step",
        description="For each method of a comparison, measure over groups how many prompts an iteration needs until its "
        "gradient is more signal than noise, what that costs, at which times the signal lies, its cosine with the policy "
        "gradient of the SDE, and the evaluation after a step of equal length. Say which method to train. Nothing is trained.",
    )
    comparison_options(study, "scenes/study")
    study.add_argument(
        "--groups",
        type=number(int, 2),
        default=64,
        help="groups of each method; more find weaker signals (default %(default)s)",
    )
    study.add_argument("--json", metavar="FILE", type=new_file, help="write the numbers as JSON too")
    study.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the tables and the advice."""
    comparison, entries = comparison_of(arguments)
    entries = with_budgets(comparison, entries)
    from neighbor_grpo.training.study import advice, study, tables

    runs = {entry.name: entry.config for entry in entries}
    result = study(runs, arguments.groups, say)
    if arguments.json:
        atomic.write(arguments.json, json.dumps(asdict(result), indent=1) + "\n")
    say("")
    say(tables(result))
    limits = {name: bound.interval(result.before[name]) for name, bound in comparison.bounds.items()}
    for line in advice(result, limits):
        say(line)
