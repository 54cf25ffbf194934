"""A user's mistakes: the one kind of error that is theirs to mend, and the rule that finds misspelt settings."""

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid")  # of dataclasses whose fields are settings: a name that is none is an error


class UserError(ValueError):
    """Says what is wrong and how to mend it; the command line shows it as one line and exits with 2."""
