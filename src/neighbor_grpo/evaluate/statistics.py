"""How sure a mean is, and which of two sets is better: the prompts are the sample, their pictures are averaged first."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

RESAMPLES = 10_000


def interval(values: np.ndarray, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979), resampling prompts.  values [P]; NaN left out.

    Two pictures of one prompt are no two prompts: give each prompt's mean.
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    rng, means = np.random.default_rng(seed), []
    for _ in range(RESAMPLES // 500):  # in portions, so that thousands of prompts take no memory to speak of
        means.append(values[rng.integers(len(values), size=(500, len(values)))].mean(1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def prompt_means(values: np.ndarray) -> np.ndarray:
    """[P, S] -> [P], pictures without a score left out, NaN where there is none."""
    counts = np.isfinite(values).sum(1)
    return np.where(counts, np.nansum(values, 1) / np.maximum(counts, 1), np.nan)


@dataclass(frozen=True)
class Paired:
    """a against b on the same prompts and seeds."""

    difference: float  # mean of a - b
    low: float  # of its 95 % interval
    high: float
    win_rate: float  # share of pictures in which a is better, ties half
    prompts_better: int
    prompts_worse: int
    p_value: float  # two-sided sign test over prompts, ties left out


def paired(a: np.ndarray, b: np.ndarray) -> Paired:
    """[P, S] each, row for row and seed for seed; what either has no score for is left out."""
    difference = a - b
    per_prompt = prompt_means(difference)
    both = np.isfinite(difference)
    better, worse = int((per_prompt > 0).sum()), int((per_prompt < 0).sum())
    p_value = binomtest(better, better + worse).pvalue if better + worse else 1.0
    wins = ((difference > 0).sum() + 0.5 * (difference[both] == 0).sum()) / max(both.sum(), 1)
    return Paired(float(np.nanmean(per_prompt)), *interval(per_prompt), float(wins), better, worse, float(p_value))
