"""How often the 95 % interval of a win rate holds the truth, in simulated studies.

    python benchmarks/arena_coverage.py [--studies 1000] [--out benchmarks/results/arena_coverage]

A simulated rater i prefers the first model on prompt j with probability σ(η + a_i + b_j), where a_i and b_j are normal with
standard deviations that a study's raters and prompts may have; η makes the mean over all raters and prompts 72 %.  Beside the
intervals of `neighbor-grpo arena results` stand those of the pigeonhole bootstrap, which resamples raters and prompts at once,
and those of votes that are taken to be independent.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from neighbor_grpo.arena.intervals import proportion, ratio, spreads
from neighbor_grpo.arena.power import Design
from neighbor_grpo.files import atomic
from neighbor_grpo.run.pages import markdown_table

TRUTH = 0.72
METHODS = ("arena", "pigeonhole", "independent")


@dataclass(frozen=True)
class Simulated:
    """Describe a simulated study."""

    raters: int
    prompts: int
    each: int  # votes of a rater, on different prompts
    rater_spread: float  # standard deviations of a and b
    prompt_spread: float


@dataclass(frozen=True)
class Covered:
    """Hold what was found for one kind of study, by method."""

    study: Simulated
    rater_share: float  # of the variance of a vote
    prompt_share: float
    coverage: dict[str, float]
    width: dict[str, float]
    planned: float  # the width that `arena plan` expects


# the paper's 46 raters first
STUDIES = [Simulated(46, 50, 25, *effects) for effects in ((0.3, 0.5), (0.5, 1.0), (1.0, 1.0), (0.0, 0.0))]
STUDIES += [
    Simulated(*size, *effects) for size in ((46, 200, 25), (20, 50, 25), (10, 50, 30)) for effects in ((0.3, 0.5), (0.5, 1.0))
]


def mean_of(function, first: float, second: float) -> float:
    """Average function(a, b) over normal a and b, by quadrature."""
    points, weights = np.polynomial.hermite_e.hermegauss(30)
    weights = weights / weights.sum()
    return float(weights @ function(first * points[:, None], second * points) @ weights)


def centre(study: Simulated) -> float:
    """Return η."""
    a, b = study.rater_spread, study.prompt_spread
    return float(brentq(lambda eta: mean_of(lambda x, y: expit(eta + x + y), a, b) - TRUTH, -10, 10))


def shares(study: Simulated, eta: float) -> tuple[float, float]:
    """Return the shares of a vote's variance that come from rater and prompt."""
    points, weights = np.polynomial.hermite_e.hermegauss(30)
    weights = weights / weights.sum()
    chance = expit(eta + study.rater_spread * points[:, None] + study.prompt_spread * points)
    parts = (weights @ ((chance @ weights) - TRUTH) ** 2, weights @ ((weights @ chance) - TRUTH) ** 2)
    of_rater, of_prompt = (float(part) / (TRUTH * (1 - TRUTH)) for part in parts)
    return of_rater, of_prompt


def draw(study: Simulated, eta: float, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw raters, prompts and wins [V] of a study; the prompts of a rater are given in balance."""
    a = random.normal(0, 1, study.raters) * study.rater_spread
    b = random.normal(0, 1, study.prompts) * study.prompt_spread
    raters = np.repeat(np.arange(study.raters), study.each)
    start = random.integers(study.prompts)
    prompts = random.permutation(study.prompts)[(start + np.arange(len(raters))) % study.prompts]
    return raters, prompts, (random.random(len(raters)) < expit(eta + a[raters] + b[prompts])).astype(float)


def intervals(raters: np.ndarray, prompts: np.ndarray, wins: np.ndarray, random: np.random.Generator) -> dict[str, tuple]:
    """Return the interval of each method."""
    rows = np.column_stack([wins, np.ones(len(wins))])
    ours = proportion(wins.mean(), spreads(rows, raters, prompts, ratio)[0])
    both = [random.multinomial(n, np.full(n, 1 / n), size=200) for n in (raters.max() + 1, prompts.max() + 1)]
    table = np.zeros((2, raters.max() + 1, prompts.max() + 1))
    np.add.at(table, (slice(None), raters, prompts), rows.T)
    sums = np.einsum("bi,kij,bj->kb", both[0], table, both[1], optimize=True)
    half = 1.96 * wins.std() / np.sqrt(len(wins))
    return {
        "arena": (ours.low, ours.high),
        "pigeonhole": tuple(np.quantile(sums[0] / sums[1], [0.025, 0.975])),
        "independent": (wins.mean() - half, wins.mean() + half),
    }


def cover(study: Simulated, studies: int, seed: int = 0) -> Covered:
    """Simulate a kind of study many times."""
    eta, random = centre(study), np.random.default_rng(seed)
    found = [intervals(*draw(study, eta, random), random) for _ in range(studies)]
    ends = {name: np.array([one[name] for one in found]) for name in METHODS}
    parts = shares(study, eta)
    design = Design(2, study.prompts, 1, study.raters, TRUTH, 0, *parts)
    return Covered(
        study,
        *parts,
        {name: float(((x[:, 0] <= TRUTH) & (x[:, 1] >= TRUTH)).mean()) for name, x in ends.items()},
        {name: float((x[:, 1] - x[:, 0]).mean()) for name, x in ends.items()},
        design.width(study.raters * study.each),
    )


def table(found: list[Covered]) -> list[list[str]]:
    """Write coverage and mean width as rows of cells."""
    head = ["raters", "prompts", "votes", "share of raters", "of prompts"]
    rows = [[*head, *(f"{name}: covers" for name in METHODS), *(f"{name}: width" for name in METHODS), "planned width"]]
    for one in found:
        s = one.study
        cells = [str(s.raters), str(s.prompts), f"{s.raters * s.each:,}", f"{one.rater_share:.1%}", f"{one.prompt_share:.1%}"]
        cells += [f"{one.coverage[name]:.1%}" for name in METHODS] + [f"{one.width[name]:.3f}" for name in METHODS]
        rows.append([*cells, f"{one.planned:.3f}"])
    return rows


def main() -> None:
    """Simulate all kinds of studies and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000, help="of each kind (default %(default)s)")
    parser.add_argument("--out", type=Path, help="also write OUT.md and OUT.json")
    arguments = parser.parse_args()
    found = []
    for study in STUDIES:
        found.append(cover(study, arguments.studies))
        print(" ".join(table(found)[-1]), flush=True)
    text = markdown_table(table(found))
    print(text)
    if arguments.out:
        atomic.write(arguments.out.with_suffix(".md"), text)
        rows = {"studies": arguments.studies, "truth": TRUTH, "found": [asdict(one) for one in found]}
        atomic.write(arguments.out.with_suffix(".json"), json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
