"""The commands `arena serve` and `arena invite`: a study for raters, and links that invite them."""

import argparse
import time
from importlib.util import find_spec
from urllib.parse import urlsplit

from neighbor_grpo.arena.texts import QUESTIONS
from neighbor_grpo.commands.options import Commands, count, number
from neighbor_grpo.console import say
from neighbor_grpo.errors import UserError, shown

DB, PORT = "arena.db", 8080


def add(commands: Commands) -> None:
    """Add the commands."""
    share = number(float, 0, 0.5)
    serve = commands.add_parser(
        "serve",
        help="show raters pairs of pictures, and store their votes",
        description="Serve a study of two or more models' pictures of the same prompts and seeds. The same command resumes it.",
    )
    option = serve.add_argument
    option(
        "folders",
        nargs="+",
        metavar="[NAME=]DIR",
        help="folder of a sample, an evaluation, a comparison or a run; a run alone is compared before and after",
    )
    option("--db", default=DB, help="file of the votes, or postgresql://USER:PASSWORD@HOST/DATABASE (default %(default)s)")
    option("--question", action="append", choices=QUESTIONS, default=[], help="ask this beside the overall question")
    option("--votes", type=count, default=50, help="pairs that each rater votes on, at most all (default %(default)s)")
    option("--repeat", type=share, default=0.1, metavar="SHARE", help="share of them that is shown again (default %(default)s)")
    option("--obvious", type=share, default=0.0, metavar="SHARE", help="as many pairs with a blurred copy (default none)")
    option("--adaptive", action="store_true", help="choose pairs of the models whose ranking is most open")
    option("--host", default="127.0.0.1", help="address to listen on (default %(default)s: this machine only)")
    option("--port", type=number(int, 0, 65535), default=PORT, help="port, 0 = any free one (default %(default)s)")
    option("--url", type=_url, help="address that raters use, where a proxy stands before the server")
    serve.set_defaults(command=run_serve)

    invite = commands.add_parser("invite", help="print links that invite raters to a study")
    option = invite.add_argument
    option("db", metavar="DB", help="the --db of the study")
    option("names", nargs="+", metavar="NAME", help="a rater")
    option("--url", type=_url, default=f"http://127.0.0.1:{PORT}", help="address that raters use (default %(default)s)")
    option("--days", type=number(float, 0, 3650, above=True), default=14, help="until a link expires (default %(default)s)")
    invite.set_defaults(command=run_invite)


def run_serve(arguments: argparse.Namespace) -> None:
    """Serve a study until it is stopped."""
    check_installed()
    from neighbor_grpo.arena.guard import Address
    from neighbor_grpo.arena.rating import Rules
    from neighbor_grpo.arena.serving import serve
    from neighbor_grpo.arena.study import read_study

    study = read_study(arguments.folders, arguments.question)
    info = study.info
    say(f"{len(info.models)} models ({', '.join(info.models)}), {len(info.prompts)} prompts, {len(info.pairs())} pairs")
    rules = Rules(arguments.votes, arguments.repeat, arguments.obvious, arguments.adaptive)
    serve(study, arguments.db, rules, Address(arguments.host, arguments.url), arguments.port, say)


def run_invite(arguments: argparse.Namespace) -> None:
    """Print a link for each rater."""
    check_installed()
    from neighbor_grpo.arena.forms import MOST, rater_name
    from neighbor_grpo.arena.signing import Seal
    from neighbor_grpo.arena.store import opened

    if wrong := next((name for name in arguments.names if rater_name(name) != name), None):
        raise UserError(f"{shown(wrong)} is not a name: write 1 to {MOST} characters, without spaces at its ends")
    with opened(arguments.db) as store:
        seal = Seal(store.secret)
    until = time.time() + arguments.days * 24 * 3600
    for name in arguments.names:
        say(f"{name} {arguments.url}/join/{seal.invitation(name, until)}")


def check_installed() -> None:
    """Raise UserError where a package of the arena is missing."""
    if missing := next((name for name in ("sqlalchemy", "itsdangerous", "krippendorff") if find_spec(name) is None), None):
        raise UserError(f"the arena needs the package {missing}: pip install 'neighbor-grpo[arena]'")


def _url(text: str) -> str:
    """Return an address without its last slash, an argparse type."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/") or parts.query:
        raise argparse.ArgumentTypeError(
            f"{shown(text)} is not the address of a server: write https://NAME or http://NAME:PORT"
        )
    return text.rstrip("/")
