"""Confidence intervals of means and paired comparisons; the sample is the prompts, whose pictures are averaged first."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

RESAMPLES = 10_000


def interval(values: np.ndarray, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Compute the percentile bootstrap interval of the mean (Efron 1979) by resampling prompts.

    values [P].  Give each prompt's mean, because pictures of one prompt are not independent.  NaN is left out.
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    rng, means = np.random.default_rng(seed), []
    for _ in range(RESAMPLES // 500):  # 500 at once, to bound the memory for thousands of prompts
        means.append(values[rng.integers(len(values), size=(500, len(values)))].mean(1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def prompt_means(values: np.ndarray) -> np.ndarray:
    """Average each prompt's values without NaN, [P, S] -> [P]; NaN where a prompt has no other value."""
    counts = np.isfinite(values).sum(1)
    return np.where(counts, np.nansum(values, 1) / np.maximum(counts, 1), np.nan)


@dataclass(frozen=True)
class Paired:
    """Compare a with b on the same prompts and seeds."""

    difference: float  # mean of a - b
    low: float  # its 95 % interval
    high: float
    win_rate: float  # share of pictures in which a is better, a tie counted as half
    prompts_better: int
    prompts_worse: int
    p_value: float  # two-sided sign test over prompts, ties left out


def paired(a: np.ndarray, b: np.ndarray) -> Paired:
    """Compare values [P, S] of the same prompts and seeds; pictures without a score on either side are left out."""
    difference = a - b
    per_prompt = prompt_means(difference)
    both = np.isfinite(difference)
    better, worse = int((per_prompt > 0).sum()), int((per_prompt < 0).sum())
    p_value = binomtest(better, better + worse).pvalue if better + worse else 1.0
    wins = ((difference > 0).sum() + 0.5 * (difference[both] == 0).sum()) / max(both.sum(), 1)
    return Paired(float(np.nanmean(per_prompt)), *interval(per_prompt), float(wins), better, worse, float(p_value))
