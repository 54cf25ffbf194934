"""The commands of `arena`: blind human evaluation, from the pictures of several models to a table."""

from neighbor_grpo.commands import arena_results, arena_serve
from neighbor_grpo.commands.options import Commands


def add(commands: Commands) -> None:
    """Add the commands."""
    arena = commands.add_parser("arena", help="let people choose between models' pictures, blindly")
    parts = arena.add_subparsers(required=True, metavar="COMMAND")
    arena_serve.add(parts)
    arena_results.add(parts)
