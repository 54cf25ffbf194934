"""Bradley-Terry scores: one number for each model, from the votes on all pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, log_expit

from neighbor_grpo.arena.intervals import Estimate, score, spreads
from neighbor_grpo.arena.votes import Vote
from neighbor_grpo.arena.win_rates import groups, points


@dataclass(frozen=True)
class Ranking:
    """Hold the scores by model, or why there are none."""

    scores: dict[str, Estimate]
    missing: str = ""


def rank(votes: Sequence[Vote], models: Sequence[str]) -> Ranking:
    """Fit Bradley-Terry scores θ to votes on one question: P(i beats j) = 1 / (1 + exp(θ_j - θ_i)), mean of θ 0.

    A tie is half a win of each, "both are bad" is left out.  Intervals are those of the bootstrap over raters and prompts, in
    which a resample moves the scores by one step of Newton's method (Kline and Santos 2012,
    "A score based approach to wild bootstrap inference").
    Source: Bradley and Terry 1952, 10.2307/2334029.
    """
    votes = [vote for vote in votes if vote.answer != "bad"]
    rows = np.zeros((len(votes), len(models), len(models)))
    for n, vote in enumerate(votes):
        left, right = models.index(vote.left), models.index(vote.right)
        rows[n, left, right] = points(vote, vote.left)
        rows[n, right, left] = 1 - rows[n, left, right]
    wins = rows.sum(0)
    if missing := _unbounded(wins, models):
        return Ranking({}, missing)
    theta = fit(wins)
    step = np.linalg.pinv(_curvature(theta, wins))  # the inverse where the scores' mean stays 0

    def moved(sums: np.ndarray) -> np.ndarray:
        return theta + _slope(theta, sums.reshape(-1, *wins.shape)) @ step

    found = spreads(rows.reshape(len(votes), -1), *groups(votes), moved)
    return Ranking({model: score(value, own) for model, value, own in zip(models, theta.tolist(), found, strict=True)})


def fit(wins: np.ndarray) -> np.ndarray:
    """Maximize Σ_ij w_ij log σ(θ_i - θ_j) over scores [M] with mean 0; wins [M, M]: how often i has beaten j."""
    total = wins.sum()

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        difference = theta[:, None] - theta[None]
        return float(-(wins * log_expit(difference)).sum() / total), -_slope(theta, wins) / total

    start = np.zeros(len(wins))
    found = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-9}).x
    return found - found.mean()


def _slope(theta: np.ndarray, wins: np.ndarray) -> np.ndarray:
    """Return the gradient of the log-likelihood, [..., M] of wins [..., M, M]."""
    beaten = expit(theta[None] - theta[:, None])  # the chance that i loses to j
    return (wins * beaten).sum(-1) - (wins * beaten).sum(-2)


def _curvature(theta: np.ndarray, wins: np.ndarray) -> np.ndarray:
    """Return the negative second derivatives [M, M] of the log-likelihood."""
    chance = expit(theta[:, None] - theta[None])
    weight = (wins + wins.T) * chance * (1 - chance)
    return np.diag(weight.sum(1)) - weight


def _unbounded(wins: np.ndarray, models: Sequence[str]) -> str:
    """Say why no finite scores fit best; nothing where they do.

    They do if and only if of any two groups of models each has won against the other (Ford 1957, 10.2307/2308513).
    """
    parts, part = connected_components(wins > 0, directed=True, connection="strong")
    if parts == 1:
        return ""
    names = [", ".join(model for model, own in zip(models, part, strict=True) if own == number) for number in range(parts)]
    if connected_components(wins > 0, directed=True, connection="weak")[0] > 1:
        return "some models were never compared with the others, not even by way of a third: " + "; ".join(names)
    # some group has lost nothing to all others
    best = next(n for n in range(parts) if not wins[np.ix_(part != n, part == n)].any())
    return f"{names[best]} won every vote against the others, so that no score is high enough: more votes are needed"
