"""The command `export`: the weights of a run, for other programs."""

import argparse

from neighbor_grpo.commands.options import Commands, place
from neighbor_grpo.console import say


def add(commands: Commands) -> None:
    """Add the command."""
    export = commands.add_parser(
        "export", help="write the weights that a run learned, for diffusers, ComfyUI or as a whole model"
    )
    export.add_argument("run", type=place, metavar="RUN", help="directory of a finished run")
    export.add_argument("--format", choices=["diffusers", "comfyui", "merged"], default="diffusers", help="default %(default)s")
    export.add_argument("--best", action="store_true", help="the best weights by evaluate.best, not the last")
    export.add_argument("--out", type=place, help="output directory (default RUN/export-FORMAT)")
    export.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Write the export and print its directory."""
    from neighbor_grpo.run.export import export

    out = arguments.out or arguments.run / f"export-{arguments.format}"
    say(export(arguments.run, arguments.format, out, arguments.best))
