"""Mistakes that users can correct, and the rule that finds unknown settings."""

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid")  # for dataclasses whose fields are settings: an unknown name is an error


class UserError(ValueError):
    """Say what is wrong and how to correct it; the command line prints it as one line and exits with 2."""
