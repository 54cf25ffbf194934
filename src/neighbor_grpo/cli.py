"""The command line.  A user's mistake is one line on stderr and exit code 2."""

import argparse
import os
import sys

from neighbor_grpo.commands import compare, evaluate, export, plan, probe, rewards, sample, scenes, train
from neighbor_grpo.errors import UserError

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when it is imported, by the commands


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        _quiet()
        return arguments.command(arguments) or 0
    except UserError as error:
        sys.stderr.write(f"neighbor-grpo: {' '.join(str(error).split())}\n")  # in one piece: other ranks write theirs
        return 2
    except KeyboardInterrupt:
        print("neighbor-grpo: stopped", file=sys.stderr)
        return 130
    finally:
        _part()


def _part() -> None:
    """Ranks that leave without a word may abort while they are taken down."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_initialized():
        distributed.destroy_process_group()


def _quiet() -> None:
    """The libraries' own progress bars and hints go; what a run says is the run's to say."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="neighbor-grpo", description="Align flow-matching models with rewards.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (train, plan, probe, compare, sample, evaluate, export, rewards, scenes):
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
