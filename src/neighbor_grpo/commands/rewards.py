"""The commands `rewards convert`, `check` and `serve`."""

import argparse
import os
import sys

from neighbor_grpo.commands.options import Commands, count, number, place, scorer_option, scorers
from neighbor_grpo.console import say, working
from neighbor_grpo.errors import UserError
from neighbor_grpo.rewards.names import REWARDS, check_rewards

CONVERTED = ("hpsv2.1", "imagereward", "aesthetic")
NAMES = f"one of {', '.join(REWARDS)}, or your own as path/to/file.py:function or package.module:function"


def add(commands: Commands) -> None:
    """Add the command."""
    rewards = commands.add_parser(
        "rewards", help="prepare, check and serve scorers", description="Prepare, check and serve the scorers of rewards."
    )
    parts = rewards.add_subparsers(required=True, metavar="COMMAND")
    _add_convert(parts)
    _add_check(parts)
    _add_serve(parts)


def _add_convert(parts: Commands) -> None:
    convert = parts.add_parser(
        "convert",
        help="convert a published checkpoint to the files that its scorer reads",
        description="Convert the checkpoint that a scorer's authors published to the files that the scorer reads. It is done "
        f"once, before the reward is used. Names: {', '.join(CONVERTED)}; the other scorers need no conversion.",
    )
    convert.add_argument("name", choices=CONVERTED, metavar="NAME", help=f"one of {', '.join(CONVERTED)}")
    convert.add_argument(
        "source", type=place, metavar="CHECKPOINT", help="the published file, for instance HPS_v2.1_compressed.pt"
    )
    convert.add_argument("--out", type=place, help="output directory (default ~/.cache/neighbor-grpo/scorers/NAME)")
    convert.add_argument("--tokenizer", help="directory or hub id of the tokenizer, where the default cannot be reached")
    convert.add_argument("--vision-heads", type=count, help="attention heads of the image tower, if not the published number")
    convert.add_argument("--text-heads", type=count, help="attention heads of the text tower, if not the published number")
    convert.set_defaults(command=run_convert)


def _add_check(parts: Commands) -> None:
    check = parts.add_parser(
        "check",
        help="score two pictures and check that the numbers make sense",
        description="Score two built-in pictures, each with its own prompt and with the other's, and check that the numbers "
        f"are finite, differ and lie in the scorer's known range. Names: {NAMES}.",
    )
    check.add_argument("name", metavar="NAME", help="a reward")
    scorer_option(check)
    check.set_defaults(command=run_check)


def _add_serve(parts: Commands) -> None:
    serve = parts.add_parser(
        "serve",
        help="score over HTTP for runs on other machines",
        description=f"Score pictures over HTTP for runs on other machines. Names: {NAMES}.",
    )
    serve.add_argument("name", metavar="NAME", help="a reward")
    scorer_option(serve)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (default %(default)s: this machine only)")
    serve.add_argument("--port", type=number(int, 0, 65535), default=8000, help="0 = a free port (default %(default)s)")
    serve.set_defaults(command=run_serve)


def run_convert(arguments: argparse.Namespace) -> None:
    """Convert a checkpoint and print the output directory."""
    if not arguments.source.exists():
        raise UserError(f"no checkpoint {arguments.source}: give the path of the published file")
    from neighbor_grpo.rewards.learned.convert import convert

    a = arguments
    with working(f"converting {a.source}"):
        out = convert(a.name, a.source, a.out, a.tokenizer, a.vision_heads, a.text_heads)
    say(out)


def run_check(arguments: argparse.Namespace) -> None:
    """Print the scores; raise UserError where they make no sense."""
    check_rewards([arguments.name], scorers(arguments))
    from neighbor_grpo.rewards.check import check
    from neighbor_grpo.rewards.registry import load_reward

    report = check(load_reward(arguments.name, scorers(arguments)))
    say("\n".join(report.lines))
    if not report.passed:
        raise UserError(
            f"the scores of {arguments.name} make no sense (see the lines above): check that its weights are the right ones"
        )


def run_serve(arguments: argparse.Namespace) -> None:
    """Serve a reward until the process is stopped, then end it with exit code 0."""
    check_rewards([arguments.name], scorers(arguments))
    from neighbor_grpo.rewards.http.server import serve
    from neighbor_grpo.rewards.registry import load_reward

    serve(load_reward(arguments.name, scorers(arguments)), arguments.host, arguments.port)
    sys.stdout.flush()
    os._exit(0)  # at once: taking the libraries down takes seconds, and a server has nothing else to end
