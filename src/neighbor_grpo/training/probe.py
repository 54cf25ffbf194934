"""How large a neighbourhood should be: the spread of the rewards at several sigmas, before anything is trained.

The same noises are mixed at every sigma, so results differ by sigma alone.  A group learns from its spread, but a neighbour
that is another picture teaches its anchor little.  So the smallest sigma is chosen that keeps a given share of the largest
spread.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from neighbor_grpo.config import Config
from neighbor_grpo.errors import UserError
from neighbor_grpo.methods.neighbor import Neighbor
from neighbor_grpo.models.family import Family
from neighbor_grpo.models.text_cache import TextCache
from neighbor_grpo.prompts.prompt import Prompt
from neighbor_grpo.rewards.set import RewardSet
from neighbor_grpo.training.collector import Collector
from neighbor_grpo.training.figures import reward_figures
from neighbor_grpo.training.phases import Phases
from neighbor_grpo.training.ranks import accelerator_on

SIGMAS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


@dataclass(frozen=True)
class Probed:
    """Hold what was measured at one sigma, averaged over groups."""

    sigma: float
    distance: float  # root mean square between two members' final latents
    rewards: dict[str, float]
    spreads: dict[str, float]  # std within a group


def probe(
    model: Family, texts: TextCache, prompts: Sequence[Prompt], rewards: RewardSet, config: Config, sigmas: Sequence[float]
) -> list[Probed]:
    """Return a row for each sigma, over the prompts of the run's first iteration; the method is Neighbor."""
    assert isinstance(config.method, Neighbor)
    rows, accelerator = [], accelerator_on(model.device)
    for sigma in sigmas:
        tried = config.model_copy(update={"method": replace(config.method, sigma=sigma)})
        collector = Collector(
            model, texts, prompts, rewards, range(config.prompts.per_iteration), tried, accelerator, Phases(model.device)
        )
        got = collector.collect(0)
        leaves = got.tree.leaves.flatten(2).float()  # [P, G, D]
        distances = torch.cdist(leaves, leaves) / leaves.shape[2] ** 0.5
        figures = reward_figures(rewards.scorers, got.rewards)
        rows.append(
            Probed(
                sigma,
                (distances.sum((1, 2)) / (distances[0].numel() - distances.shape[1])).mean().item(),
                {name: figures[f"reward/{name}"] for name in rewards.scorers},
                {name: figures[f"spread/{name}"] for name in rewards.scorers},
            )
        )
    return rows


def choose(rows: Sequence[Probed], share: float) -> float:
    """Return the smallest sigma at which every reward keeps `share` of its largest spread.

    Raises UserError for a reward without any spread.
    """
    largest = {name: max(row.spreads[name] for row in rows) for name in rows[0].spreads}
    for name, spread in largest.items():
        if not spread > 0:
            raise UserError(f"{name} is the same for all pictures of every group, at every sigma: choose a finer reward")
    return min(row.sigma for row in rows if all(row.spreads[name] >= share * largest[name] for name in largest))


def table(rows: Sequence[Probed]) -> str:
    """Return the rows as a Markdown table."""
    names = list(rows[0].rewards)
    head = ["sigma", "distance", *(f"{name} {figure}" for name in names for figure in ("mean", "spread", "of largest"))]
    largest = {name: max(row.spreads[name] for row in rows) or 1.0 for name in names}
    lines = [head, ["---"] * len(head)] + [
        [f"{row.sigma:g}", f"{row.distance:.3f}"]
        + [
            text
            for name in names
            for text in (f"{row.rewards[name]:.4g}", f"{row.spreads[name]:.3g}", f"{row.spreads[name] / largest[name]:.0%}")
        ]
        for row in rows
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
