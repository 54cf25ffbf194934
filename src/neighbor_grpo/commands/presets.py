"""The command `presets`: the configurations of the package."""

import argparse

from neighbor_grpo.commands.options import Commands
from neighbor_grpo.config import preset_names, read_preset


def add(commands: Commands) -> None:
    """Add the command."""
    presets = commands.add_parser(
        "presets",
        help="list the configurations that the package brings along",
        description="List the presets: methods with their published recipes, models, rows of comparisons and comparisons. "
        "Use one with: neighbor-grpo train --preset NAME, or as the key preset: NAME of a YAML file.",
    )
    presets.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Print every preset with the first line of its comment."""
    names = preset_names()
    width = max(map(len, names))
    print("\n".join(f"{name:{width}}  {read_preset(name).summary}" for name in names))
