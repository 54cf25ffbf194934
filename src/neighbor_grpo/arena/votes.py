"""What raters said: the records that the server stores and the statistics read."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Answer: TypeAlias = Literal["left", "right", "tie", "bad"]  # bad: both are
Purpose: TypeAlias = Literal["vote", "repeat", "obvious"]  # the last two are attention checks, which no result counts
OVERALL = "overall"  # the question that every study asks
DEGRADED = "degraded copy"  # in place of a model in an obvious pair: the other side is better


@dataclass(frozen=True)
class Vote:
    """Hold the answer of a rater to one question about one pair."""

    rater: str  # the name that the rater typed, or that of the invitation
    prompt: int  # number of the prompt in the study, from 0
    seed: int  # number of the picture of that prompt, from 0
    left: str  # the model whose picture was on the left
    right: str
    question: str
    answer: Answer
    purpose: Purpose
    seconds: float  # from showing the pair to the answer
