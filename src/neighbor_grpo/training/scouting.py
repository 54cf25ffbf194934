"""Experience from rollouts whose noise was chosen among drafts (methods.scouts)."""

import torch
from scipy.stats import rankdata
from torch import Tensor

from neighbor_grpo.config import Scouts
from neighbor_grpo.flow.streams import SCOUT
from neighbor_grpo.methods.advantage import combine, z_score
from neighbor_grpo.methods.scouts import Recorded, choose, drafting, replay
from neighbor_grpo.methods.tree import Noise
from neighbor_grpo.models.conditioning import Cond
from neighbor_grpo.training.collector import Collected, Collector


class Scouting(Collector):
    """Draft, choose, and roll out what was chosen.  M drafts of each of p prompts."""

    @property
    def scouts(self) -> Scouts:
        """Return the settings of the drafts."""
        assert self.config.scouts is not None
        return self.config.scouts

    def collect(self, n: int) -> Collected:
        """Roll out and score this rank's prompts of iteration n."""
        self.scores: list[Tensor] = []  # of the chosen drafts, group by group
        self.forwards = self.nominal = self.failed = 0  # forwards for each prompt; drafts without a score
        return super().collect(n)

    def _noise(self, n: int, rows: Tensor, cond: Cond) -> Noise:
        """Draft some of this rank's groups, and return the noise of the drafts that are chosen."""
        drawn = Recorded(super()._noise(n, rows, cond))
        drafts = drafting(self.config.method, self.scouts.count, self.scouts.steps)
        tree = self._rolled(drafts, n, drawn, cond, self.scouts.fp8)
        images, prompts = self._decoded(tree), self._prompts_of(n)
        with self.phases.time("reward"):
            scored = self.rewards.submit(images, [prompts[p] for p in rows]).result()
        rewards = torch.stack([one.values.view(len(rows), -1) for one in scored.values()])  # [rewards, p, M]
        scores = self._scores(rewards)
        generators = self._generators(SCOUT, n, rows)
        chosen = choose(scores, self.config.method.group_size, self.scouts.select, generators)
        self.scores.append(scores.gather(1, chosen))
        self.forwards, self.nominal = tree.evaluations, tree.nominal_evaluations
        self.failed += int(rewards.isnan().any(0).sum())
        return replay(drawn.drawn, chosen)

    def _scores(self, rewards: Tensor) -> Tensor:
        """Return one score of each sample, 0 without one.  [rewards, p, n] -> [p, n]"""
        reward = self.config.reward
        weights = torch.tensor(list(reward.train.values()))
        return combine(lambda values, pool: z_score(values), rewards, rewards, weights, reward.aggregate)

    def _figures(self, got: Collected) -> dict[str, float]:
        """Add the cost of the drafts, and how well their order foretold that of the samples, on all ranks."""
        figures, group = super()._figures(got), self.config.method.group_size
        drafts = self._all_ranks(torch.cat(self.scores).unsqueeze(0))[0]
        failed = self._all_ranks(torch.tensor([[[float(self.failed)]]]))
        return figures | {
            "nfe_old": figures["nfe_old"] + self.forwards / group,
            "nfe_nominal": figures["nfe_nominal"] + self.nominal / group,
            "scouts/drafts": self.scouts.count / group,
            "scouts/rank_correlation": rank_correlation(drafts, self._scores(got.pool)),
            "scouts/failed": float(failed.sum()),
        }


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Return Spearman's rank correlation, the mean over groups that have spread in both; 0 without such a group.  [P, G] each

    >>> round(rank_correlation(torch.tensor([[0.1, 0.2, 0.9]]), torch.tensor([[3.0, 5.0, 4.0]])), 6)
    0.5
    """
    ranks = [torch.from_numpy(rankdata(scores.double().numpy(), axis=1)) for scores in (first, second)]
    one, two = ((r - r.mean(1, keepdim=True)) for r in ranks)
    sizes = one.norm(dim=1) * two.norm(dim=1)
    found = ((one * two).sum(1) / sizes)[sizes > 0]
    return float(found.mean()) if len(found) else 0.0
