"""neighbor-grpo export"""

import argparse
from pathlib import Path


def add(commands) -> None:
    export = commands.add_parser("export", help="what a run has learned, for diffusers, ComfyUI or as a whole model")
    export.add_argument("run", type=Path, metavar="RUN")
    export.add_argument("--format", choices=["diffusers", "comfyui", "merged"], default="diffusers", help="default %(default)s")
    export.add_argument("--best", action="store_true", help="the weights that were best by evaluate.best, not the last")
    export.add_argument("--out", type=Path, help="directory (default RUN/export-FORMAT)")
    export.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    from neighbor_grpo.run.export import export

    out = arguments.out or arguments.run / f"export-{arguments.format}"
    print(export(arguments.run, arguments.format, out, arguments.best))
