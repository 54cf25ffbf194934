"""How many votes a study needs, before it begins."""

from dataclasses import dataclass, replace
from math import ceil

from neighbor_grpo.arena.intervals import Estimate, combine, proportion
from neighbor_grpo.errors import UserError


@dataclass(frozen=True)
class Design:
    """Hold what is known of a study before its first vote.

    A vote on two models is 1, 1/2 (a tie) or 0.  Of its variance s² = p (1 - p) - ties / 4 a share comes from the rater, one
    from the prompt, the rest from chance.  Pictures of one prompt count as alike.
    """

    models: int
    prompts: int
    seeds: int
    raters: int
    win_rate: float  # p, a tie counted as half
    ties: float  # their share
    rater_share: float  # of the variance
    prompt_share: float

    def __post_init__(self) -> None:
        """Raise UserError for shares that cannot be."""
        if self.square <= 0:
            raise UserError(
                f"a win rate of {self.win_rate:.0%} with {self.ties:.0%} ties leaves nothing open: give fewer --ties, or a "
                "--win-rate nearer to 0.5"
            )
        if self.rater_share + self.prompt_share > 1:
            raise UserError("--rater-share and --prompt-share are parts of one whole: give shares that add up to at most 1")

    @property
    def square(self) -> float:
        """Return the variance s² of a vote."""
        return self.win_rate * (1 - self.win_rate) - self.ties / 4

    @property
    def pairs(self) -> int:
        """Return the number of pairs of models."""
        return self.models * (self.models - 1) // 2

    @property
    def most(self) -> int:
        """Return how many votes a pair of models can have: every rater on every prompt and seed."""
        return self.raters * self.prompts * self.seeds

    def interval(self, votes: float) -> Estimate:
        """Return the 95 % interval to expect of `votes` votes N on a pair, spread evenly over raters and prompts.

        V_raters = s² (r / R + (1 - r) / N), V_prompts = s² (q / P + (1 - q) / N), V_votes = s² / N, with the shares r and q;
        then as with votes: V = V_raters + V_prompts - V_votes = s² (r / R + q / P + (1 - r - q) / N).
        """
        raters, prompts = (
            self.square * (share / count + (1 - share) / votes)
            for share, count in ((self.rater_share, self.raters), (self.prompt_share, self.prompts))
        )
        return proportion(self.win_rate, combine(raters, prompts, self.square / votes, self.raters, self.prompts))

    def width(self, votes: float) -> float:
        """Return the width of that interval."""
        found = self.interval(votes)
        assert found.low is not None and found.high is not None
        return found.high - found.low

    def votes(self, width: float) -> int:
        """Return the fewest votes on a pair whose interval is at most `width` wide.

        Raises UserError where all possible votes are not enough.
        """
        low, high = 1, self.most
        if self.width(high) > width:
            raise UserError(self._too_few(width))
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.width(middle) <= width else (middle + 1, high)
        return low

    def assumptions(self, seconds: float) -> str:
        """Say what the numbers assume."""
        return (
            f"Assumed: {self.ties:.0%} ties; of the variance of a vote {self.rater_share:.0%} comes from the rater and "
            f"{self.prompt_share:.0%} from the prompt; {seconds:g} seconds a vote; attention checks come on top.\n"
            "N votes on a pair of models by R raters on P prompts give a win rate p with the variance "
            "V = s² (r / R + q / P + (1 - r - q) / N), s² = p (1 - p) - ties / 4, with r and q the shares of rater and prompt."
        )

    def _too_few(self, width: float) -> str:
        """Say how many prompts would be enough, or that only more raters help."""
        prompts = self.prompts
        while prompts < 10**6 and replace(self, prompts=prompts).width(self.raters * prompts * self.seeds) > width:
            prompts += max(1, prompts // 50)
        remedy = "more --raters" if prompts >= 10**6 else f"about {prompts:,} prompts, or more --raters"
        return (
            f"--width {width:g} is out of reach: if {self.raters} raters judge every picture of {self.prompts} prompts, "
            f"the interval is {self.width(self.most):.2g} wide; give {remedy}, or a larger --width"
        )


def plan(design: Design, width: float, seconds: float) -> list[list[str]]:
    """Write the votes that an interval of a width needs as a table: a head, then rows.  seconds: of one vote."""
    votes = design.votes(width)
    total = votes * design.pairs
    each = ceil(total / design.raters)
    found = design.interval(votes)
    return [
        ["", "votes"],
        ["for each pair of models", f"{votes:,}"],
        ["in all" if design.pairs == 1 else f"in all, {design.pairs} pairs of models", f"{total:,}"],
        ["for each rater", f"{each:,}, about {each * seconds / 60:.0f} minutes"],
        ["for each pair of pictures", f"{votes / (design.prompts * design.seeds):.1f}"],
        [f"interval of a win rate of {design.win_rate:.0%}", f"{found.low:.1%} – {found.high:.1%}"],
    ]
