"""The command line as `python -m neighbor_grpo`."""

from neighbor_grpo.cli import entry

if __name__ == "__main__":  # a process that this one spawns imports the module too
    entry()
