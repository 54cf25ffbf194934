"""neighbor-grpo train"""

import argparse
import sys

from neighbor_grpo.commands.options import configuration, keys
from neighbor_grpo.errors import UserError
from neighbor_grpo.methods import METHODS


def add(commands) -> None:
    train = commands.add_parser(
        "train",
        help="align a model with a reward",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Align a model with a reward. Without CONFIG: the bundled model on the bundled task.",
        epilog="keys:\n"
        + keys()
        + "".join(
            f"\n\nkeys with method.name={name}:\n" + keys(method, "method.")
            for name, method in METHODS.items()
            if name != "neighbor"
        ),
    )
    train.add_argument(
        "config", nargs="*", metavar="CONFIG | key=value", help="YAML files, each over the one before, then changes"
    )
    train.add_argument("--resume", metavar="RUN", help="go on with the run in this directory")
    train.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    from neighbor_grpo.training.trainer import SignalError, Trainer

    if arguments.resume and arguments.config:
        raise UserError("--resume takes its settings from the run: leave out the configuration and the changes")
    try:
        trainer = Trainer.resume(arguments.resume) if arguments.resume else Trainer(configuration(arguments.config))
        trainer.run()
    except SignalError as stop:
        print(f"neighbor-grpo: {stop}", file=sys.stderr)
        return 128 + stop.signum
    return 0
