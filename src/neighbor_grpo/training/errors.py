"""Why a run stops before its end."""

from collections.abc import Sequence

from neighbor_grpo.errors import UserError


class TrainingError(UserError):
    """Say why the run stopped, where its state is saved, and how to resume it."""


class NotFiniteError(Exception):
    """Say what is infinite or NaN; the weights are those before it.  prompts: the numbers of those that it concerns."""

    def __init__(self, message: str, prompts: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.prompts = prompts


class RanksDifferError(Exception):
    """Say that the ranks no longer hold the same weights."""
