"""The command line as `python -m neighbor_grpo`."""

from neighbor_grpo.cli import entry

entry()
