"""The one kind of error that is the user's to mend: the command line shows its message, one line, and exits with 2."""


class UserError(ValueError):
    """Says what is wrong and how to mend it."""
