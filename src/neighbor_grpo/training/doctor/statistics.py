"""Tests with known error rates: is there a direction in gradients, do scores belong to their prompts, has a mean changed."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

DRAWS = 9_999  # random signs or permutations: the smallest p-value is 1 / 10,000


@dataclass(frozen=True)
class Direction:
    """Describe what n vectors g_i have in common, from their inner products."""

    signal: float  # |mean|^2, unbiased: the mean of <g_i, g_j> over i != j; negative by chance where there is nothing
    variance: float  # E|g - mean|^2
    p_value: float  # of signal under sign flips

    @property
    def enough(self) -> float:
        """Return how many vectors must be averaged until signal and noise are equal: variance / signal."""
        return self.variance / self.signal if self.signal > 0 else float("inf")


def direction(gram: np.ndarray, seed: int = 0) -> Direction:
    """Test whether vectors share a direction, from their inner products [n, n].

    Without one, g_i and -g_i are equally likely, so random signs give the null distribution of sum_{i != j} <u_i, u_j>, with
    u_i = g_i / |g_i| so that a few long vectors cannot decide.  Zero vectors are left out of the test.
    """
    n = len(gram)
    signal = (gram.sum() - np.trace(gram)) / (n * (n - 1))
    length = np.sqrt(np.diag(gram))
    some = length > 0
    cosines = gram[np.ix_(some, some)] / np.outer(length[some], length[some])
    np.fill_diagonal(cosines, 0)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (DRAWS, int(some.sum())))
    null = np.einsum("di,ij,dj->d", signs, cosines, signs, optimize=True)
    p_value = (1 + int((null >= cosines.sum()).sum())) / (1 + DRAWS)
    return Direction(float(signal), float(np.trace(gram) / n - signal), p_value if some.sum() > 1 else 1.0)


@dataclass(frozen=True)
class Match:
    """Describe how scores S[i, j] of the pictures of prompt i by prompt j belong together."""

    depends: bool  # whether the scores depend on the prompt at all
    own: float  # p-value that pictures score higher with their own prompt than with others
    opposite: float  # p-value that they score lower
    other: float  # p-value that they score higher with the prompts of another fixed assignment


def match(scores: np.ndarray, seed: int = 0) -> Match:
    """Test whether pictures fit their own prompts, from scores [P, P, S] (prompt of the picture, prompt scored by, picture).

    The statistic is the sum over i of S[i, a(i)], with rows and columns centred, so that easy prompts and good pictures count
    for nothing.  Random assignments give its null distribution.  The other assignment is the best one of the first half of
    the pictures, tested on the second half.
    """
    halves = [_centred(half.mean(-1)) for half in np.array_split(scores, 2, axis=-1)]
    both = _centred(scores.mean(-1))
    n, rng = len(both), np.random.default_rng(seed)
    spread = scores.std() or 1.0
    if np.abs(scores - scores[:, :1]).max() <= 1e-6 * spread or np.abs(both).max() <= 1e-6 * spread:
        return Match(False, 1.0, 1.0, 1.0)
    drawn = rng.permuted(np.tile(np.arange(n), (DRAWS, 1)), axis=1)
    null, at = both[np.arange(n), drawn].sum(1), both.trace()
    best = linear_sum_assignment(halves[0], maximize=True)[1]
    other = halves[1][np.arange(n), drawn].sum(1) >= halves[1][np.arange(n), best].sum()
    return Match(True, _p((null >= at).sum()), _p((null <= at).sum()), _p(other.sum()) if (best != np.arange(n)).any() else 1.0)


def _centred(table: np.ndarray) -> np.ndarray:
    return table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()


def _p(times: int) -> float:
    return (1 + int(times)) / (1 + DRAWS)


def change(values: np.ndarray) -> tuple[float, float]:
    """Return how much a series has risen from its first to its last third, and that rise in standard errors.

    The errors are those of the two means, from the scatter within each third; 0 and 0 for a series shorter than 6.
    """
    n = len(values) // 3
    if n < 2:
        return 0.0, 0.0
    first, last = values[:n], values[-n:]
    rise = float(last.mean() - first.mean())
    error = float(np.sqrt((first.var(ddof=1) + last.var(ddof=1)) / n))
    return rise, rise / error if error else float(np.sign(rise)) * float("inf") if rise else 0.0
