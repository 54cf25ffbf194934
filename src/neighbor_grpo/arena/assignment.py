"""Which pairs a rater is given: those that were given least often, or those whose ranking is still open.

All randomness comes from a key, so that a server that was restarted decides as before.
"""

import hashlib
import hmac
import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from random import Random

from neighbor_grpo.arena.study import Pair
from neighbor_grpo.arena.votes import Answer, Purpose


def random_of(secret: str, *what: object) -> Random:
    """Return the random numbers of a study's secret and a purpose, for instance of a rater and the sides of a pair."""
    message = "/".join(map(str, what)).encode()
    return Random(hmac.new(secret.encode(), message, hashlib.sha256).digest())


def purposes(votes: int, repeat: float, obvious: float, rng: Random) -> list[Purpose]:
    """Return what each of a rater's pairs is for: `votes` votes, and shares of them as attention checks.

    The checks come in the second half, where there are votes to repeat.
    """
    first: list[Purpose] = ["vote"] * (votes // 2)
    second: list[Purpose] = ["vote"] * (votes - votes // 2)
    second += ["repeat"] * min(round(repeat * votes), votes // 2)
    second += ["obvious"] * round(obvious * votes)
    rng.shuffle(second)
    return first + second


def expected_loss(wins: int, losses: int, halves: int, pending: int) -> float:
    """Return the win rate that is lost, on average, by believing the present ranking of two models.

    With n = wins + losses + halves votes, of which ties and "both bad" count half, and d = p - 1/2:

        p = (wins + halves / 2 + 1) / (n + 2)        the mean under a uniform prior
        s = sqrt(p (1 - p) / (n + pending + 3))      its standard deviation; pairs under way count as if they were voted on
        loss = s phi(d / s) - |d| Phi(-|d| / s)      E[max(0, -d')] for d' normal with mean |d| and deviation s

    It is large where the models are close and the votes few.

    >>> expected_loss(0, 0, 0, 0) > expected_loss(5, 5, 0, 0) > expected_loss(10, 0, 0, 0)
    True
    """
    n = wins + losses + halves
    p = (wins + halves / 2 + 1) / (n + 2)
    s = math.sqrt(p * (1 - p) / (n + pending + 3))
    d = abs(p - 0.5)
    return s * math.exp(-((d / s) ** 2) / 2) / math.sqrt(2 * math.pi) - d * math.erfc(d / s / math.sqrt(2)) / 2


OPEN = 0.75  # share of the pairs that adaptive choice takes where the ranking is open; the others keep every pair in play


class Board:
    """Count what was given, shown and answered, and choose what comes next.

    Attention checks are not counted.
    """

    def __init__(self, pairs: Sequence[Pair], adaptive: bool = False) -> None:
        self._pairs, self._adaptive = pairs, adaptive
        self.given = [0] * len(pairs)  # planned, shown or answered
        self._shown = [0] * len(pairs)  # or answered
        self._of_models: Counter[tuple[int, int]] = Counter()  # given
        self._of_prompt: Counter[int] = Counter()  # given
        self._answers: Counter[tuple[tuple[int, int], str]] = Counter()

    def give(self, pair: int, count: int = 1) -> None:
        """Count a pair that a rater was given; -1: it is taken back."""
        self.given[pair] += count
        self._of_models[self._models(pair)] += count
        self._of_prompt[self._pairs[pair].prompt] += count

    def show(self, pair: int, count: int = 1) -> None:
        """Count a pair that a rater is shown; -1: it is taken back."""
        self._shown[pair] += count

    def answer(self, pair: int, answer: Answer, swapped: bool, count: int = 1) -> None:
        """Count an overall answer; -1: it is taken back."""
        outcome = "halves" if answer in ("tie", "bad") else "wins" if (answer == "left") != swapped else "losses"
        self._answers[self._models(pair), outcome] += count

    def choose(self, number: int, seen: Collection[int], rng: Random) -> list[int]:
        """Choose that many pairs for a rater, count them as given, and return them; fewer where the rater has seen the others.

        Pairs come first that were given least often; of these, pairs of models and then prompts that were given least often;
        of these, in random order.  A rater who takes the least often given ones of all keeps the counts within one of each
        other.  Adaptive: mostly, pairs of the models come first whose ranking is most open, see `expected_loss`.
        """
        free = [pair for pair in range(len(self._pairs)) if pair not in seen]
        rng.shuffle(free)
        adaptive = self._adaptive and rng.random() < OPEN
        losses = {models: self._loss(models) for models in {self._models(pair) for pair in free}} if adaptive else {}
        occurred: Counter[tuple[int, object]] = Counter()  # so that the chosen ones balance as well
        keys: dict[int, tuple[float, ...]] = {}
        for pair in free:
            models, prompt, given = self._models(pair), self._pairs[pair].prompt, self.given[pair]
            turns = (self._of_models[models] + occurred[given, models], self._of_prompt[prompt] + occurred[given, prompt])
            keys[pair] = (-losses.get(models, 0.0), given, *turns)
            occurred[given, models] += 1
            occurred[given, prompt] += 1
        chosen = sorted(free, key=keys.__getitem__)[:number]
        for pair in chosen:
            self.give(pair)
        return chosen

    def first(self, planned: Iterable[int], rng: Random) -> int:
        """Return the one of the planned pairs that was shown least often, a random one of several.

        So the votes stay balanced too when raters leave before their end.
        """
        order = sorted(planned)
        rng.shuffle(order)
        return min(order, key=self._shown.__getitem__)

    def _models(self, pair: int) -> tuple[int, int]:
        return self._pairs[pair].first, self._pairs[pair].second

    def _loss(self, models: tuple[int, int]) -> float:
        wins, losses, halves = (self._answers[models, outcome] for outcome in ("wins", "losses", "halves"))
        return expected_loss(wins, losses, halves, max(0, self._of_models[models] - wins - losses - halves))
