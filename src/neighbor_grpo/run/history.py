"""What a run has written, as the checks of it read it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from neighbor_grpo.config import Config, Prompts, evaluation_prompts
from neighbor_grpo.errors import UserError
from neighbor_grpo.run import files
from neighbor_grpo.run.record import read_record


@dataclass(frozen=True)
class History:
    """Hold what a run has written."""

    run: Path
    config: Config
    lines: Sequence[files.Figures]

    @property
    def steps(self) -> list[files.Figures]:
        """Return the lines of iterations."""
        return [line for line in self.lines if line["iteration"] > 0]

    @cached_property
    def evaluations(self) -> list[files.Figures]:
        """Return the lines with an evaluation that can be compared with the last one."""
        base = read_record(self.run).base  # later than 0 where a resumed run measures otherwise
        return files.evaluated([line for line in self.lines if line["iteration"] >= base])

    @cached_property
    def evaluated_pictures(self) -> int:
        """Return the number of pictures of an evaluation; a prompt file may have fewer prompts than are asked for."""
        e = self.config.evaluate
        known = _known_prompts(self.config.prompts.model_dump_json())
        return (e.prompts if known is None else min(known, e.prompts)) * e.seeds

    def series(self, key: str) -> np.ndarray:
        """Return a figure of all iterations that have it."""
        return np.array([line[key] for line in self.steps if line.get(key) is not None], dtype=float)

    def rise(self, name: str, n: int = -1) -> float | None:
        """Return how far a reward has risen at evaluation n, in standard errors.

        The errors are those of two independent sets of pictures; the noises are the same, so the true ones are smaller.
        """
        first, last = self.evaluations[0], self.evaluations[n]
        keys = f"eval/{name}", f"eval_spread/{name}"
        if not all(key in line for key in keys for line in (first, last)):
            return None
        error = ((first[keys[1]] ** 2 + last[keys[1]] ** 2) / self.evaluated_pictures) ** 0.5
        rise = last[keys[0]] - first[keys[0]]
        return rise / error if error else float(np.sign(rise)) * float("inf") if rise else 0.0


@cache  # a page that goes on asks at each evaluation, and a dataset takes seconds to read
def _known_prompts(source: str) -> int | None:
    """Return how many evaluation prompts there are; None where the run was copied here without them."""
    try:
        return len(evaluation_prompts(Prompts.model_validate_json(source)))
    except UserError:
        return None


def growth(values: np.ndarray) -> float:
    """Return the median of the last third over that of the first, of the values above 0; 1 for a short series."""
    values = values[values > 0]
    n = len(values) // 3
    return float(np.median(values[-n:]) / np.median(values[:n])) if n >= 2 else 1.0
