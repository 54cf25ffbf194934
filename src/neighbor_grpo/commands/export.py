"""The command `export`: the weights of a run, for other programs."""

import argparse

from neighbor_grpo.commands.options import Commands, place
from neighbor_grpo.console import say
from neighbor_grpo.run.export_request import FORMS, check_request


def add(commands: Commands) -> None:
    """Add the command."""
    export = commands.add_parser(
        "export",
        help="write the weights that a run learned, for diffusers, ComfyUI or as a whole model, and send them to the hub",
    )
    export.add_argument("run", type=place, metavar="RUN", help="directory of a finished run")
    export.add_argument("--format", choices=FORMS, default=FORMS[0], help="default %(default)s")
    export.add_argument("--best", action="store_true", help="the best weights by evaluate.best, not the last")
    export.add_argument("--out", type=place, help="output directory (default RUN/export-FORMAT)")
    export.add_argument("--push", metavar="NAME/REPO", help="send the export to this repository on the hub of Hugging Face")
    export.add_argument("--private", action="store_true", help="make the repository of --push a private one")
    export.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Write the export and print its directory; send it, if asked, and print its address."""
    request = check_request(arguments.run, arguments.format, arguments.out, arguments.best, arguments.push, arguments.private)
    from neighbor_grpo.run.export import export  # only now, because it loads the libraries

    say(export(request))
    if request.push:
        from neighbor_grpo.run.hub import push

        say(push(request.out, request.push, request.private))
