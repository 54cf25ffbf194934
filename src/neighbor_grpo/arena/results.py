"""The results of a study: from its votes to tables of cells and one JSON object."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from neighbor_grpo.arena.agreement import Attention, alpha, attention, attentive, counts
from neighbor_grpo.arena.evaluations import Measures
from neighbor_grpo.arena.metrics import MetricAgreement, metric_agreement
from neighbor_grpo.arena.ranking import Ranking, rank
from neighbor_grpo.arena.votes import Vote
from neighbor_grpo.arena.win_rates import WinRate, pairs, win_rate
from neighbor_grpo.errors import UserError


@dataclass(frozen=True)
class Answers:
    """Hold the results of one question."""

    question: str
    rates: list[WinRate]  # of every pair of models
    alphas: list[float | None]  # Krippendorff's, of the same pairs
    ranking: Ranking
    categories: dict[str, list[WinRate]]  # by category; empty where prompts have none
    metrics: list[MetricAgreement]


@dataclass(frozen=True)
class Results:
    """Hold the results of a study."""

    models: Sequence[str]
    votes: Sequence[Vote]  # all that were given
    counted: Sequence[Vote]
    raters: list[Attention]  # with those who are left out
    least: float | None  # their consistency
    answers: list[Answers]


def results_of(
    models: Sequence[str],
    categories: Sequence[str | None],
    questions: Sequence[str],
    votes: Sequence[Vote],
    least: float | None = None,
    measured: Sequence[Measures] = (),
) -> Results:
    """Compute the results of a study; least: leave out raters whose consistency is lower.

    Raises UserError where there are no votes.
    """
    if not any(vote.purpose == "vote" for vote in votes):
        raise UserError("the study has no votes yet: let people vote first")
    counted = [vote for vote in attentive(votes, least) if vote.purpose == "vote"]
    if not counted:
        raise UserError(f"--min-consistency {least:g} leaves out every rater: give a lower one")
    answers = [
        _answers(question, [vote for vote in counted if vote.question == question], models, categories, measured)
        for question in questions
    ]
    return Results(models, votes, counted, attention(votes), least, answers)


def _answers(
    question: str,
    votes: Sequence[Vote],
    models: Sequence[str],
    categories: Sequence[str | None],
    measured: Sequence[Measures],
) -> Answers:
    """Compute the results of one question."""
    both = list(pairs(models))
    names = sorted({name for name in categories if name})
    return Answers(
        question,
        [win_rate(votes, pair) for pair in both],
        [alpha(votes, pair) for pair in both],
        rank(votes, models),
        {name: [win_rate([v for v in votes if categories[v.prompt] == name], pair) for pair in both] for name in names},
        [metric_agreement(name, measured, votes, models) for name in (measured[0] if measured else ())],
    )


def record(results: Results) -> dict[str, Any]:
    """Return the results as numbers, as results.json holds them; raters by their numbers."""
    return {
        "models": list(results.models),
        "votes": len(results.counted),
        "raters": len({vote.rater for vote in results.counted}),
        "min_consistency": results.least,
        "questions": [asdict(answers) for answers in results.answers],
        "attention": [
            {**asdict(one), "rater": n, "consistency": one.consistency, "counted": counts(one, results.least)}
            for n, one in enumerate(results.raters, 1)
        ],
    }
