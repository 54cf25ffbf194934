"""Random streams: every random number of a run comes from a key, so a run keeps no random state.

A key is (seed, stream, iteration, slot), or a part of it.  A slot is a prompt's place in an iteration's batch, so a group draws
the same numbers on whichever rank it lies, and a resumed run draws what the uninterrupted one draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from neighbor_grpo.flow.lazy import torch

if TYPE_CHECKING:
    from torch import Generator

# All streams.  The first two have no number in their key, so that results of earlier versions can be reproduced.
#   prompt order       (seed, epoch)            training/schedule.py
#   evaluation noise   (seed, prompt)           models/sampling.py
NOISE = 1  # (seed, 1, iteration, slot)  a group's noise
DRAW = 2  # (seed, 2, iteration, slot)  what of a group is trained on
ITERATION = 3  # (seed, 3, iteration)  what all groups share, e.g. where a random window stands
SCOUT = 4  # (seed, 4, iteration, slot)  which drafts of a group are chosen, where chance decides


def generator(*key: int) -> Generator:
    """Return a CPU generator that depends on the key alone.

    >>> generator(0, NOISE, 7, 2).initial_seed() == generator(0, NOISE, 7, 2).initial_seed()
    True
    """
    state = np.random.SeedSequence([int(k) for k in key]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


@dataclass(frozen=True)
class Iteration:
    """Say which iteration of a run this is, and give the random numbers that all of its groups share."""

    number: int
    seed: int = 0

    def generator(self) -> Generator:
        """Return the generator that all groups on all ranks share; each call starts it anew."""
        return generator(self.seed, ITERATION, self.number)

    def of_slot(self, stream: int, slot: int) -> Generator:
        """Return the generator of one group: NOISE or DRAW, and the group's place in the batch."""
        return generator(self.seed, stream, self.number, slot)
