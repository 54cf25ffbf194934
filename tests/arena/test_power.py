from dataclasses import replace
from math import sqrt

import pytest

from neighbor_grpo.arena.power import Design, plan
from neighbor_grpo.errors import UserError

DESIGN = Design(models=3, prompts=200, seeds=2, raters=40, win_rate=0.72, ties=0.1, rater_share=0.05, prompt_share=0.2)


def test_the_variance_is_that_of_the_formula():
    square = 0.72 * 0.28 - 0.1 / 4
    for votes in (1000, 8000):
        variance = square * (0.05 / 40 + 0.2 / 200 + 0.75 / votes)
        assert DESIGN.width(votes) == pytest.approx(2 * 1.97 * sqrt(variance), rel=0.03)  # t of about 150 degrees of freedom


def test_without_effects_of_raters_and_prompts_it_is_that_of_independent_votes():
    plain = replace(DESIGN, raters=10**5, prompts=10**5, ties=0, rater_share=0, prompt_share=0)
    assert plain.votes(0.1) == pytest.approx(1.96**2 * 4 * 0.72 * 0.28 / 0.1**2, rel=0.02)


def test_the_votes_are_the_fewest():
    votes = DESIGN.votes(0.12)
    assert DESIGN.width(votes) <= 0.12 < DESIGN.width(votes - 1)
    assert DESIGN.votes(0.1) > votes > replace(DESIGN, ties=0.3).votes(0.12)


@pytest.mark.parametrize("change", [{"ties": 0.9}, {"win_rate": 1.0}, {"rater_share": 0.5, "prompt_share": 0.6}])
def test_shares_that_cannot_be_are_refused(change):
    with pytest.raises(UserError, match="give"):
        replace(DESIGN, **change)


def test_the_table_divides_the_votes():
    votes = DESIGN.votes(0.12)
    cells = dict(plan(DESIGN, 0.12, 15)[1:])
    assert cells["for each pair of models"] == f"{votes:,}" and cells["in all, 3 pairs of models"] == f"{3 * votes:,}"
    each = -(-3 * votes // 40)
    assert cells["for each rater"] == f"{each}, about {each * 15 / 60:.0f} minutes"
    assert cells["for each pair of pictures"] == f"{votes / 400:.1f}"


def test_what_no_votes_can_reach_is_refused_with_what_can():
    with pytest.raises(UserError, match="prompts, or more --raters") as caught:
        replace(DESIGN, prompts=30).votes(0.1)
    prompts = int(str(caught.value).split("about ")[1].split()[0])
    enough = replace(DESIGN, prompts=prompts)
    assert enough.width(enough.most) <= 0.1 < replace(DESIGN, prompts=prompts * 9 // 10).width(enough.most)
    with pytest.raises(UserError, match="give more --raters, or"):
        replace(DESIGN, raters=3).votes(0.1)
