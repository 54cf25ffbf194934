"""The command `presets`: the configurations of the package."""

import argparse

from neighbor_grpo.commands.options import Commands
from neighbor_grpo.config import preset_names, read_preset
from neighbor_grpo.config.presets import LEVELS


def add(commands: Commands) -> None:
    """Add the command."""
    presets = commands.add_parser(
        "presets",
        help="list the configurations that the package brings along",
        description="List the presets: methods with their published recipes, models, rows of comparisons and comparisons; each "
        "with the memory that its plan counts for one device (without a model of its own: the bundled one's), and how far it "
        "was tried. Use one with: neighbor-grpo train --preset NAME, or as the key preset: NAME of a YAML file.",
    )
    presets.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> None:
    """Print every preset with its memory, its level and the first line of its comment, then what the levels mean."""
    presets = [read_preset(name) for name in preset_names()]
    width, level = (max(map(len, texts)) for texts in ([preset.name for preset in presets], LEVELS))
    for preset in presets:
        memory = f"{preset.memory:g} GB" if preset.memory else ""
        print(f"{preset.name:{width}}  {memory:>8}  {preset.level:{level}}  {preset.summary}")
    used = {preset.level for preset in presets}
    print("\n" + "\n".join(f"{name:{level}}  {text}" for name, text in LEVELS.items() if name in used))
