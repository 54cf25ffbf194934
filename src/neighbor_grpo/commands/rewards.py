"""neighbor-grpo rewards: convert, check, serve"""

import argparse
from pathlib import Path

from neighbor_grpo.commands.options import scorer_option, scorers
from neighbor_grpo.errors import UserError


def add(commands) -> None:
    rewards = commands.add_parser("rewards", help="scorers: convert, check, serve")
    rewards = rewards.add_subparsers(required=True, metavar="COMMAND")

    convert = rewards.add_parser("convert", help="a published checkpoint into what its scorer reads")
    convert.add_argument("name", choices=["hpsv2.1", "imagereward", "aesthetic"])
    convert.add_argument("source", type=Path, metavar="CHECKPOINT")
    convert.add_argument("--out", type=Path, help="directory (default ~/.cache/neighbor-grpo/scorers/NAME)")
    convert.add_argument("--tokenizer", help="directory or hub id, where there is no access to the default")
    convert.add_argument("--vision-heads", type=int, help="attention heads, for architectures that are not the published ones")
    convert.add_argument("--text-heads", type=int)
    convert.set_defaults(command=run_convert)

    check = rewards.add_parser("check", help="score two built-in pictures and say whether the numbers make sense")
    check.add_argument("name")
    scorer_option(check)
    check.set_defaults(command=run_check)

    serve = rewards.add_parser("serve", help="score over HTTP for runs on other machines")
    serve.add_argument("name")
    scorer_option(serve)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (default %(default)s: this machine alone)")
    serve.add_argument("--port", type=int, default=8000, help="default %(default)s")
    serve.set_defaults(command=run_serve)


def run_convert(arguments: argparse.Namespace) -> None:
    from neighbor_grpo.rewards.learned.convert import convert

    print(
        convert(
            arguments.name, arguments.source, arguments.out, arguments.tokenizer, arguments.vision_heads, arguments.text_heads
        )
    )


def run_check(arguments: argparse.Namespace) -> None:
    from neighbor_grpo.rewards.check import check
    from neighbor_grpo.rewards.registry import load_reward

    report = check(load_reward(arguments.name, scorers(arguments)))
    print("\n".join(report.lines))
    if not report.passed:
        raise UserError(f"the numbers of {arguments.name} make no sense: see the lines above; are these its weights?")


def run_serve(arguments: argparse.Namespace) -> None:
    from neighbor_grpo.rewards.http.server import serve
    from neighbor_grpo.rewards.registry import load_reward

    serve(load_reward(arguments.name, scorers(arguments)), arguments.host, arguments.port)
