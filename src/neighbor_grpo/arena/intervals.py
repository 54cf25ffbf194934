"""Intervals that speak of other raters and other prompts than those of a study: a bootstrap over both.

A vote depends on who gives it and on what is shown, so votes are not independent: raters are a sample, and prompts are one.
Resampling both at once (the pigeonhole bootstrap, Owen 2007, 10.1214/07-AOAS122; with weights Owen and Eckles 2012,
10.1214/12-AOAS547) counts the chance of a single vote three times, so its intervals of votes are up to 1.7 times too wide.
Three bootstraps are therefore combined, of raters, of prompts and of votes (Cameron, Gelbach and Miller 2011,
10.1198/jbes.2010.07136):

    V = max(V_raters + V_prompts - V_votes, V_raters, V_prompts)

V_votes is subtracted because both others hold it.  With few votes the difference may be too small by chance, therefore the
maximum (MacKinnon, Nielsen and Webb 2024, arXiv:2406.08880).  benchmarks/arena_coverage.py measures how often such an interval
holds the truth.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf, nan, sqrt
from typing import TypeAlias

import numpy as np
from scipy.stats import t as student

DRAWS = 1000  # of each bootstrap: they tell the width to 2 %
_AT_ONCE = 2_000_000  # weights in memory
Statistic: TypeAlias = Callable[[np.ndarray], np.ndarray]  # sums over votes [B, K] -> F figures of each [B, F]


@dataclass(frozen=True)
class Spread:
    """Hold the variance of a figure, and from how much it was estimated."""

    variance: float  # NaN where there is one rater and one prompt
    freedom: float  # degrees of freedom of the variance
    groups: int  # the fewer of raters and prompts


@dataclass(frozen=True)
class Estimate:
    """Hold a figure and its 95 % interval; None where nothing shows how wide it is."""

    value: float
    low: float | None
    high: float | None


def spreads(rows: np.ndarray, raters: np.ndarray, prompts: np.ndarray, statistic: Statistic) -> list[Spread]:
    """Estimate the variance of each figure that `statistic` makes of the sum of `rows` [V, K] over V votes.

    raters, prompts: [V], whole numbers.  With one rater the variance is that of prompts alone, and the other way round.
    """
    together = raters.astype(np.int64) * (int(prompts.max()) + 1) + prompts
    (by_rater, n_raters), (by_prompt, n_prompts), (by_vote, _) = (
        _bootstrap(rows, groups, statistic) for groups in (raters, prompts, together)
    )
    if n_raters == 1 or n_prompts == 1:
        variances, n = (by_prompt, n_prompts) if n_raters == 1 else (by_rater, n_raters)
        return [Spread(variance, n - 1, n) for variance in variances]
    return [combine(*three, n_raters, n_prompts) for three in zip(by_rater, by_prompt, by_vote, strict=True)]


def combine(by_rater: float, by_prompt: float, by_vote: float, raters: int, prompts: int) -> Spread:
    """Combine the variances of the three bootstraps, see above.

    Degrees of freedom by Satterthwaite (1946), as if those of raters and prompts were independent:
    V² / (V_raters² / (R - 1) + V_prompts² / (P - 1)).
    """
    variance = max(by_rater + by_prompt - by_vote, by_rater, by_prompt)
    noise = by_rater**2 / (raters - 1) + by_prompt**2 / (prompts - 1)
    return Spread(variance, variance**2 / noise if noise else inf, min(raters, prompts))


def _bootstrap(rows: np.ndarray, groups: np.ndarray, statistic: Statistic) -> tuple[list[float], int]:
    """Return the variance of each figure when whole groups of votes are resampled, and the number of groups n.

    The Bayesian bootstrap (Rubin 1981, 10.1214/aos/1176345338) weights groups by Exp(1) instead of drawing them, so that no
    model and no pair is ever without votes.  Of a mean over equal groups its variance is (n - 1) / (n + 1) of the unbiased one.
    """
    numbers, place = np.unique(groups, return_inverse=True)
    n = len(numbers)
    sums = np.zeros((n, rows.shape[1]))
    np.add.at(sums, place, rows)
    values = np.concatenate([statistic(weights @ sums) for weights in _weights(n)])
    variances = values.var(0) * (n + 1) / (n - 1) if n > 1 else np.full(values.shape[1], nan)
    return variances.tolist(), n


def _weights(n: int) -> Iterator[np.ndarray]:
    """Yield the weights of DRAWS resamples [b, n], whose mean is 1; the same ones every time."""
    random, left = np.random.default_rng(0), DRAWS
    while left:
        weights = random.exponential(size=(min(left, max(1, _AT_ONCE // n)), n))
        yield weights / weights.mean(1, keepdims=True)
        left -= len(weights)


def proportion(value: float, found: Spread) -> Estimate:
    """Return a proportion with its 95 % interval, by Wilson's score with n = p (1 - p) / V votes.

    (p + t²/2n ± t √(p (1 - p) / n + t²/4n²)) / (1 + t²/n), t of Student's distribution.  It stays within 0 and 1.  Where all
    votes agree, nothing shows how raters or prompts differ: they then count as one vote of each rater or prompt, whichever
    are fewer.  Source: Wilson 1927, 10.1080/01621459.1927.10502953; for votes that are
    not independent, Franco, Little, Louis and Slud 2019, "Comparative study of confidence intervals for proportions in complex
    sample surveys".
    """
    if np.isnan(value) or np.isnan(found.variance):
        return Estimate(value, None, None)
    own = value * (1 - value)
    agree = found.variance <= 1e-12
    t = _quantile(found.groups - 1 if agree else found.freedom)
    inverse = 1 / found.groups if agree else found.variance / own  # 1 / n
    middle, scale = value + t**2 * inverse / 2, 1 + t**2 * inverse
    half = t * sqrt(own * inverse + (t * inverse) ** 2 / 4)
    return Estimate(value, max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale))


def score(value: float, found: Spread) -> Estimate:
    """Return a figure without bounds with its 95 % interval, value ± t √V."""
    if np.isnan(found.variance):
        return Estimate(value, None, None)
    half = _quantile(found.freedom) * sqrt(found.variance)
    return Estimate(value, value - half, value + half)


def _quantile(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's t."""
    return float(student.ppf(0.975, freedom))


def ratio(sums: np.ndarray) -> np.ndarray:
    """Divide the first of two sums by the second: a mean, as a statistic."""
    return sums[:, :1] / sums[:, 1:]
