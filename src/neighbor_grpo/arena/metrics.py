"""How far automatic metrics agree with people."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau, spearmanr

from neighbor_grpo.arena.evaluations import Measures
from neighbor_grpo.arena.intervals import Estimate
from neighbor_grpo.arena.votes import Vote
from neighbor_grpo.arena.win_rates import Pair, mean_of, pairs, points, winner


@dataclass(frozen=True)
class MetricAgreement:
    """Hold how far a metric agrees with the votes on one question."""

    metric: str
    votes: int  # with a winner, and a value for both pictures
    share: Estimate | None  # of them whose winner has the higher value, equal values counted as half; None without votes
    kendall: float | None  # τ_b of the metric's differences with win rates, over prompts and pairs of models; None if undefined
    spearman: float | None  # ρ of the same


def metric_agreement(name: str, measured: Sequence[Measures], votes: Sequence[Vote], models: Sequence[str]) -> MetricAgreement:
    """Compare a metric, by its values for each model in `measured`, with votes on one question.

    Below one half the winners have the lower values: of such a metric less is better.  τ_b and ρ compare, prompt by prompt, the
    win rate of a model against another (ties as half, "both are bad" left out) with the difference of their mean values.
    """
    values = {model: own[name] for model, own in zip(models, measured, strict=True)}
    decided: list[Vote] = []
    higher: list[float] = []
    for vote in votes:
        if (won := winner(vote)) is not None:
            lost = vote.right if won == vote.left else vote.left
            difference = values[won][vote.prompt, vote.seed] - values[lost][vote.prompt, vote.seed]
            if not np.isnan(difference):
                decided.append(vote)
                higher.append((1 + float(np.sign(difference))) / 2)
    kendall, spearman = _correlations(values, votes, models)
    return MetricAgreement(name, len(decided), mean_of(np.array(higher), decided), kendall, spearman)


def _correlations(
    values: dict[str, np.ndarray], votes: Sequence[Vote], models: Sequence[str]
) -> tuple[float | None, float | None]:
    """Return Kendall's τ_b and Spearman's ρ."""
    people: dict[tuple[Pair, int], list[float]] = {}
    for pair in pairs(models):
        for vote in votes:
            if vote.answer != "bad" and {vote.left, vote.right} == set(pair):
                people.setdefault((pair, vote.prompt), []).append(points(vote, pair[0]))
    both = [
        (float(np.mean(given)), _mean(values[first][prompt]) - _mean(values[second][prompt]))
        for ((first, second), prompt), given in people.items()
    ]
    x, y = np.array([row for row in both if not np.isnan(row[1])]).reshape(-1, 2).T
    if len(set(x)) < 2 or len(set(y)) < 2:
        return None, None
    return float(kendalltau(x, y).statistic), float(spearmanr(x, y).statistic)


def _mean(values: np.ndarray) -> float:
    """Average the values that are there."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan
