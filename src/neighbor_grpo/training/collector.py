"""What an iteration learns from: this rank's prompts, rolled out and scored, a few groups at a time."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from neighbor_grpo.config import Config
from neighbor_grpo.flow.streams import generator
from neighbor_grpo.methods.tree import Tree, side_by_side
from neighbor_grpo.models.quantization import fp8_products
from neighbor_grpo.models.registry import Cond, FlowModel, move, take
from neighbor_grpo.models.sampling import batched_velocity, decode
from neighbor_grpo.models.text_cache import TextCache
from neighbor_grpo.prompts.reading import Prompt
from neighbor_grpo.prompts.schedule import scheduled
from neighbor_grpo.rewards.score import Failure, Scores
from neighbor_grpo.rewards.set import Panel, check_failed, joined
from neighbor_grpo.run import files
from neighbor_grpo.training.figures import Phases

NOISE = 1  # stream of random numbers


@dataclass(frozen=True)
class Collected:
    """P prompts on all ranks, p of them here; G samples each, M rewards, NaN where there is no score."""

    cond: Cond  # [p, ...]
    tree: Tree
    rewards: Tensor  # [M, p, G]
    pool: Tensor  # [M, P, G]


class Collector:
    """Collected = collector(iteration).  Noise is drawn from (seed, iteration, slot), so it is a group's own on any rank."""

    def __init__(
        self,
        model: FlowModel,
        texts: TextCache,
        prompts: Sequence[Prompt],
        panel: Panel,
        slots: range,
        config: Config,
        accelerator: Accelerator,
        phases: Phases,
    ) -> None:
        self.model, self.texts, self.prompts, self.panel, self.slots = model, texts, prompts, panel, slots
        self.config, self.accelerator, self.phases = config, accelerator, phases
        self.times = model.times(config.method.num_steps)
        self.keep_on = torch.device("cpu") if config.batch.keep_on == "cpu" else accelerator.device

    def __call__(self, n: int) -> Collected:
        with self.phases("encode"):
            prompts = self._prompts_of(n)
            epoch = range(n + 1, min(n + 2 + len(self.prompts) // len(self.slots), self.config.iterations))
            coming = (prompt for later in epoch for prompt in self._prompts_of(later))
            cond = move(self.texts(prompts, coming), self.accelerator.device)
        trees, pending = [], []
        size = max(1, self.config.batch.rollout // self.config.method.group_size)
        for rows in torch.arange(len(prompts)).split(size):  # as many groups as are rolled out at once
            tree, images = self._roll_out(n, rows, take(cond, rows))
            trees.append(tree)
            with self.phases("reward"):
                pending.append(self.panel.submit(images, [prompts[p] for p in rows]))
        with self.phases("reward"):
            pool, rewards = self._scored(n, joined([part.result() for part in pending]))
        return Collected(cond, side_by_side(trees), rewards, pool)

    def _prompts_of(self, n: int) -> list[Prompt]:
        """This rank's prompts in iteration n."""
        indices = scheduled(len(self.prompts), self.config.prompts.per_iteration, n, self.config.seed)
        return [self.prompts[indices[slot]] for slot in self.slots]

    def _roll_out(self, n: int, rows: Tensor, cond: Cond) -> tuple[Tree, Tensor]:
        """Trees of some of this rank's groups, and their leaves' pictures [·, G, 3, H, W]."""
        noises = [generator(self.config.seed, NOISE, n, self.slots[p]) for p in rows]
        batch = self.config.batch
        with self.phases("rollout"), torch.no_grad(), self._precision():
            tree = self.config.method.rollout(
                batched_velocity(self.model, cond, batch.rollout),
                lambda k: torch.stack([self.model.noise(k, g) for g in noises]).to(self.keep_on),
                self.times,
                n,
            )
        with self.phases("decode"):
            return tree, decode(self.model, tree.leaves, batch.decode)

    def _precision(self) -> AbstractContextManager:
        return fp8_products(self.model.transformer) if self.config.model.fp8_rollout else nullcontext()

    def _scored(self, n: int, scores: dict[str, Scores]) -> tuple[Tensor, Tensor]:
        """Rewards of all ranks [M, P, G] and of this one [M, p, G]; too many failures stop all ranks alike."""
        group = self.config.method.group_size
        here = torch.stack([one.values for one in scores.values()]).view(len(scores), -1, group)
        pool = self._all_ranks(here)
        if pool.isnan().any():
            failures = self._failures(n, {name: one.failures for name, one in scores.items()})
            counts = {
                name: (int(values.isnan().sum()), values.numel(), "{0.reason} (prompt {0.prompt!r})".format(failures[name][0]))
                for name, values in zip(scores, pool, strict=True)
                if values.isnan().any()
            }
            check_failed(counts, self.config.reward.max_failed)
        return pool, here

    def _failures(self, n: int, failures: dict[str, tuple[Failure, ...]]) -> dict[str, list[Failure]]:
        """Those of all ranks, written to failures.jsonl."""
        ranks = gather_object([failures])
        every = {name: [failure for rank in ranks for failure in rank[name]] for name in failures}
        if self.accelerator.is_main_process:
            for name, found in every.items():
                files.record_failures(Path(self.config.run_dir), n, name, found)
        return every

    def _all_ranks(self, rewards: Tensor) -> Tensor:
        """[M, p, G] -> [M, P, G]"""
        if self.accelerator.num_processes == 1:
            return rewards
        here = rewards.transpose(0, 1).contiguous().to(self.accelerator.device, torch.float32)
        return self.accelerator.gather(here).cpu().transpose(0, 1)
