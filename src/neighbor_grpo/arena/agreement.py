"""Whether raters agree with each other, and whether each is attentive."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from neighbor_grpo.arena.votes import DEGRADED, Vote
from neighbor_grpo.arena.win_rates import Pair, winner


def alpha(votes: Iterable[Vote], pair: Pair) -> float | None:
    """Compute Krippendorff's alpha of the votes on one question about a pair of models; None where it is not defined.

    1 - D_observed / D_expected, nominal: units are the pairs of pictures, values are first, second, tie and "both are bad".
    1: raters always agree; 0: as often as by chance.  It needs two raters of one pair of pictures and two different answers.
    Source: Krippendorff 2011, repository.upenn.edu/asc_papers/43.
    """
    import krippendorff  # of the extra `arena`

    units: dict[tuple[int, int], np.ndarray] = {}
    for vote in votes:
        if {vote.left, vote.right} == set(pair):
            won = winner(vote)
            value = pair.index(won) if won is not None else 2 + (vote.answer == "bad")
            units.setdefault((vote.prompt, vote.seed), np.zeros(4))[value] += 1
    counts = np.array([*units.values()]).reshape(-1, 4)
    shared = counts[counts.sum(1) > 1]
    if (shared.sum(0) > 0).sum() < 2:
        return None
    return float(krippendorff.alpha(value_counts=shared, level_of_measurement="nominal"))


@dataclass(frozen=True)
class Attention:
    """Hold what a rater's votes say about his attention."""

    rater: str
    votes: int  # that count, all questions together
    repeats: int  # pairs shown again
    same: int  # of them answered as the first time
    obvious: int  # pairs with an obvious answer
    right: int  # of them answered so
    left: float | None  # share of the left side in the votes with a winner; half where sides do not matter
    seconds: float  # median time of an answer

    @property
    def consistency(self) -> float | None:
        """Return the share of attention checks that were passed; None without any."""
        checks = self.repeats + self.obvious
        return (self.same + self.right) / checks if checks else None


def attention(votes: Sequence[Vote]) -> list[Attention]:
    """Measure the attention of every rater, by name."""
    by_rater: dict[str, list[Vote]] = {}
    for vote in votes:
        by_rater.setdefault(vote.rater, []).append(vote)
    return [_attention(rater, by_rater[rater]) for rater in sorted(by_rater)]


def _attention(rater: str, votes: Sequence[Vote]) -> Attention:
    counted, repeats, obvious = ([vote for vote in votes if vote.purpose == name] for name in ("vote", "repeat", "obvious"))
    first = {_shown(vote): _meaning(vote) for vote in counted}
    repeats = [vote for vote in repeats if _shown(vote) in first]  # the first answer may have been undone
    sides = [vote.answer for vote in counted if winner(vote)]
    return Attention(
        rater=rater,
        votes=len(counted),
        repeats=len(repeats),
        same=sum(_meaning(vote) == first[_shown(vote)] for vote in repeats),
        obvious=len(obvious),
        right=sum(winner(vote) not in (None, DEGRADED) for vote in obvious),
        left=sides.count("left") / len(sides) if sides else None,
        seconds=median(vote.seconds for vote in counted or votes),
    )


def _shown(vote: Vote) -> tuple[int, int, frozenset[str], str]:
    """Return what was asked, whichever side the pictures were on."""
    return vote.prompt, vote.seed, frozenset((vote.left, vote.right)), vote.question


def _meaning(vote: Vote) -> tuple[str | None, bool]:
    """Return the answer, whichever side the pictures were on: the winner, and whether both are bad."""
    return winner(vote), vote.answer == "bad"


def counts(rater: Attention, least: float | None) -> bool:
    """Return whether a rater's votes are counted: the consistency is `least` or more, or nothing asks for it or checks it."""
    return least is None or rater.consistency is None or rater.consistency >= least


def attentive(votes: Sequence[Vote], least: float | None) -> list[Vote]:
    """Leave out the votes of raters who do not count."""
    kept = {one.rater for one in attention(votes) if counts(one, least)}
    return [vote for vote in votes if vote.rater in kept]
