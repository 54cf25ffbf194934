"""The address of the command line for launchers: `python -m neighbor_grpo.cli`, or `main` called with arguments."""

from neighbor_grpo.commands.main import entry, main

__all__ = ["entry", "main"]

if __name__ == "__main__":
    entry()
