"""The results of a study as tables of cells, for Markdown and for the page, and its votes as CSV."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass

from neighbor_grpo.arena.agreement import Attention, counts
from neighbor_grpo.arena.intervals import Estimate
from neighbor_grpo.arena.results import Results
from neighbor_grpo.arena.win_rates import WinRate, winner
from neighbor_grpo.run.pages import markdown_table

NONE = "–"  # a cell without a value
Rows = list[list[str]]


@dataclass(frozen=True)
class Section:
    """Hold a table with its title and what it says."""

    title: str
    text: str
    rows: Rows  # the first is the head; none where the text says all


def sections(results: Results) -> Iterator[Section]:
    """Yield the tables of a study."""
    alone = any(rate.raters == 1 for answers in results.answers for rate in answers.rates)
    yield Section(
        "Win rates",
        'The win rate is that of the first model: a tie counts as half a win of each, "both bad" is left out; in the column '
        'beside it "both bad" counts as half too. In brackets 95 % intervals, by a bootstrap over raters and prompts. '
        "Agreement is Krippendorff's alpha: 1 if raters always agree, 0 if as often as by chance."
        + (" Intervals of pairs with one rater are over prompts alone, and say nothing of other raters." if alone else ""),
        [
            ["question", *_RATE_HEAD, "agreement"],
            *(
                [answers.question, *_rate_cells(rate), _number(alpha, ".2f")]
                for answers in results.answers
                for rate, alpha in zip(answers.rates, answers.alphas, strict=True)
            ),
        ],
    )
    yield from _scores(results)
    if any(answers.categories for answers in results.answers):
        yield Section(
            "Categories",
            "The same for the prompts of each category.",
            [
                ["question", "category", *_RATE_HEAD],
                *(
                    [answers.question, category, *_rate_cells(rate)]
                    for answers in results.answers
                    for category, rates in answers.categories.items()
                    for rate in rates
                ),
            ],
        )
    if any(answers.metrics for answers in results.answers):
        yield _metrics(results)
    yield _raters(results)


_RATE_HEAD = (
    "models",
    "votes",
    "first wins",
    "tie",
    "both bad",
    "second wins",
    "win rate",
    "both bad as half",
    "raters",
    "prompts",
)


def _rate_cells(rate: WinRate) -> list[str]:
    counted = (rate.votes, rate.wins, rate.ties, rate.bad, rate.losses)
    rates = (percent(rate.rate), percent(rate.rate_with_bad))
    return [f"{rate.first} : {rate.second}", *map(str, counted), *rates, str(rate.raters), str(rate.prompts)]


def _scores(results: Results) -> Iterator[Section]:
    rows = [
        [answers.question, model, f"{score.value:+.2f}", _interval(score, "+.2f")]
        for answers in results.answers
        for model, score in sorted(answers.ranking.scores.items(), key=lambda item: -item[1].value)
    ]
    missing = [f" {answers.question}: {answers.ranking.missing}." for answers in results.answers if answers.ranking.missing]
    yield Section(
        "Bradley-Terry scores",
        "A model whose score is higher by d wins with probability 1 / (1 + exp(-d)); the mean is 0. A tie counts as half a win "
        'of each, "both bad" is left out.' + "".join(missing),
        [["question", "model", "score", "95 % interval"], *rows] if rows else [],
    )


def _metrics(results: Results) -> Section:
    return Section(
        "Automatic metrics",
        "Share: how often the picture that was preferred has the higher value, among votes with a winner; equal values count "
        "as half. Below 50 %, less is better. Kendall's τ and Spearman's ρ compare win rates with differences of the metric, "
        "prompt by prompt.",
        [
            ["question", "metric", "votes", "share", "Kendall's τ", "Spearman's ρ"],
            *(
                [
                    answers.question,
                    one.metric,
                    str(one.votes),
                    percent(one.share),
                    _number(one.kendall, "+.2f"),
                    _number(one.spearman, "+.2f"),
                ]
                for answers in results.answers
                for one in answers.metrics
            ),
        ],
    )


def _raters(results: Results) -> Section:
    out = [str(n) for n, rater in enumerate(results.raters, 1) if not counts(rater, results.least)]
    text = (
        "Raters by the alphabetical order of their names. Consistency: share of the attention checks that were passed; those "
        "are pairs shown again and pairs with an obvious answer, and are counted nowhere else."
    )
    if results.least is not None:
        text += f" Left out for a consistency below {results.least:g}: {', '.join(out) or 'nobody'}."
    head = ["rater", "votes", "answered alike again", "obvious answered right", "consistency", "left side", "seconds"]
    return Section("Raters", text, [head, *(_rater_cells(n, rater) for n, rater in enumerate(results.raters, 1))])


def _rater_cells(number: int, rater: Attention) -> list[str]:
    return [
        str(number),
        str(rater.votes),
        f"{rater.same} of {rater.repeats}",
        f"{rater.right} of {rater.obvious}",
        _number(rater.consistency, ".0%"),
        _number(rater.left, ".0%"),
        f"{rater.seconds:.1f}",
    ]


def percent(found: Estimate | None) -> str:
    """Write a share with its interval."""
    return NONE if found is None else f"{found.value:.1%} ({_interval(found, '.1%')})"


def _interval(found: Estimate, form: str) -> str:
    return NONE if found.low is None or found.high is None else f"{found.low:{form}} – {found.high:{form}}"


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else f"{value:{form}}"


def as_markdown(results: Results) -> str:
    """Write all tables in Markdown."""
    return "\n".join(
        f"## {section.title}\n\n{section.text}\n" + (f"\n{markdown_table(section.rows)}" if section.rows else "")
        for section in sections(results)
    )


def votes_csv(results: Results) -> str:
    """Write every vote, attention checks too; raters by the numbers of the table of raters."""
    numbers = {rater.rater: n for n, rater in enumerate(results.raters, 1)}
    counted = set(map(id, results.counted))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["rater", "prompt", "seed", "left", "right", "question", "answer", "winner", "purpose", "seconds", "counted"]
    )
    for vote in results.votes:
        place = (numbers[vote.rater], vote.prompt, vote.seed, vote.left, vote.right, vote.question)
        said = (vote.answer, winner(vote) or "", vote.purpose, f"{vote.seconds:.1f}", int(id(vote) in counted))
        writer.writerow([*place, *said])
    return text.getvalue()
