"""How often each model wins: counts and win rates of every pair of models, for each question and category."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from neighbor_grpo.arena.intervals import Estimate, proportion, ratio, spreads
from neighbor_grpo.arena.votes import Vote

Pair = tuple[str, str]


@dataclass(frozen=True)
class WinRate:
    """Hold what raters said of two models; wins and rates are those of `first`."""

    first: str
    second: str
    wins: int
    ties: int
    bad: int  # "both are bad"
    losses: int
    raters: int
    prompts: int
    rate: Estimate | None  # a tie is half a win, "both are bad" is left out; None without such votes
    rate_with_bad: Estimate | None  # both are half a win

    @property
    def votes(self) -> int:
        """Return how many votes there are."""
        return self.wins + self.ties + self.bad + self.losses


def winner(vote: Vote) -> str | None:
    """Return the model that a vote prefers; None for a tie and for "both are bad"."""
    return {"left": vote.left, "right": vote.right}.get(vote.answer)


def pairs(models: Sequence[str]) -> Iterator[Pair]:
    """Yield every pair of models, in their order."""
    yield from combinations(models, 2)


def points(vote: Vote, first: str) -> float:
    """Return the share of a win that a vote gives to `first`, one of its models: 1, 0, or half without a winner."""
    won = winner(vote)
    return 0.5 if won is None else float(won == first)


def mean_of(values: np.ndarray, votes: Sequence[Vote]) -> Estimate | None:
    """Average a value in [0, 1] of each vote [V], with its interval; None without votes."""
    if not len(votes):
        return None
    rows = np.column_stack([values, np.ones(len(votes))])
    (found,) = spreads(rows, *groups(votes), ratio)
    return proportion(float(values.mean()), found)


def groups(votes: Sequence[Vote]) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the raters and of the prompts of votes: [V] and [V]."""
    raters = np.unique([vote.rater for vote in votes], return_inverse=True)[1]
    return raters, np.array([vote.prompt for vote in votes])


def win_rate(votes: Iterable[Vote], pair: Pair) -> WinRate:
    """Count what votes on one question say of a pair of models; votes on other pairs are left out."""
    mine = [vote for vote in votes if {vote.left, vote.right} == set(pair)]
    clear = [vote for vote in mine if vote.answer != "bad"]
    won = [winner(vote) for vote in mine]
    rate, with_bad = (mean_of(np.array([points(vote, pair[0]) for vote in counted]), counted) for counted in (clear, mine))
    return WinRate(
        first=pair[0],
        second=pair[1],
        wins=won.count(pair[0]),
        ties=len(clear) - len(mine) + won.count(None),
        bad=len(mine) - len(clear),
        losses=won.count(pair[1]),
        raters=len({vote.rater for vote in mine}),
        prompts=len({vote.prompt for vote in mine}),
        rate=rate,
        rate_with_bad=with_bad,
    )
