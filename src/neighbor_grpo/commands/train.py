"""The commands `train` and `demo`."""

import argparse
import sys
from collections.abc import Sequence

from neighbor_grpo.commands.options import Commands, configuration, configuration_options, key_lines
from neighbor_grpo.config import Config, describe
from neighbor_grpo.console import say
from neighbor_grpo.errors import UserError
from neighbor_grpo.methods import METHODS, load_method


def add(commands: Commands) -> None:
    """Add the commands `train` and `demo`."""
    train = commands.add_parser(
        "train",
        help="align a model with a reward",
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Align a model with a reward.  What is not given has the default below.  With nothing given at all the\n"
        "demonstration runs: the bundled model on the bundled task, a few minutes on a laptop.",
    )
    train.add_argument("-h", "--help", action="store_true", help="show this message, with every key and its default")
    train.add_argument("--method", metavar="NAME", help=f"with --help: list the keys of this method: {', '.join(METHODS)}")
    configuration_options(train)
    train.add_argument(
        "--resume",
        metavar="RUN",
        help="resume the run in this directory at its newest checkpoint; key=value changes settings that may change",
    )
    train.set_defaults(command=run, parser=train)
    demo = commands.add_parser(
        "demo",
        help="train the bundled model on the bundled task, a few minutes on a laptop",
        description="Train the bundled model on the bundled task, a few minutes on a laptop: train --preset demo.",
    )
    demo.add_argument("config", nargs="*", metavar="key=value", help="single keys to change")
    demo.set_defaults(command=run, preset=["demo"], resume=None, method=None, help=False)


def run(arguments: argparse.Namespace) -> int:
    """Train a new run, or resume one."""
    if arguments.help:
        return _print_help(arguments)
    if arguments.method:
        raise UserError(f"--method lists keys, with --help: to choose a method write method.name={arguments.method}")
    if arguments.resume:
        if arguments.preset or not all("=" in text for text in arguments.config):
            raise UserError("--resume takes its settings from the run: leave out presets and files; key=value may change some")
        return _train(resume=arguments.resume, changes=arguments.config)
    return _train(config=configuration(arguments))


def _train(config: Config | None = None, resume: str = "", changes: Sequence[str] = ()) -> int:
    from neighbor_grpo.training.signals import SignalError
    from neighbor_grpo.training.trainer import Trainer

    try:
        trainer = Trainer(config) if config else Trainer.resume(resume, changes)
        trainer.run()
    except SignalError as stop:
        say(f"neighbor-grpo: {stop}", sys.stderr)
        return 128 + stop.signum
    return 0


def _print_help(arguments: argparse.Namespace) -> int:
    method = load_method(arguments.method or "neighbor")
    print(arguments.parser.format_help())
    print("keys:\n" + key_lines(list(describe(Config, method=method))))
    if not arguments.method:
        print(f"\nkeys of another method: neighbor-grpo train --help --method NAME, one of {', '.join(METHODS)}")
    return 0
