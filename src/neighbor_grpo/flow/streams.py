"""Random streams: everything random comes from a key, so a run keeps no random state."""

import numpy as np
import torch


def generator(*key: int) -> torch.Generator:
    """CPU generator that depends on the key alone, e.g. (seed, iteration, prompt): a run keeps no random state."""
    state = np.random.SeedSequence([int(k) for k in key]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))
