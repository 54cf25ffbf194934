"""The command `watch`: the page of runs while they go on."""

import argparse

from neighbor_grpo.commands.options import Commands, number, place
from neighbor_grpo.console import say


def add(commands: Commands) -> None:
    """Add the command."""
    watch = commands.add_parser(
        "watch",
        help="show runs in a browser while they go on",
        description="Serve the page of runs while they go on, several in the same curves. The runs' files are read, never "
        "written. Ctrl-C ends it; the runs are not touched.",
    )
    watch.add_argument(
        "runs", type=place, nargs="+", metavar="RUN", help="directory of a run, or of a comparison, for all its runs"
    )
    watch.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at (default %(default)s: this machine only); other machines need the token that is printed",
    )
    watch.add_argument("--port", type=number(int, 0, 65535), default=8001, help="0 = a free port (default %(default)s)")
    watch.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Serve until the process is stopped."""
    from neighbor_grpo.files.listening import listen, url_of
    from neighbor_grpo.run import serving
    from neighbor_grpo.run.watch import Watch, application

    watch, token = Watch(arguments.runs), serving.new_token(arguments.host)
    listening = listen(arguments.host, arguments.port)
    question = f"?token={token}" if token else ""
    say(f"watching {', '.join(map(str, arguments.runs))} on {url_of(arguments.host, listening)}/{question}")
    serving.run(serving.Guard(application(watch), token), listening, watch.end)
