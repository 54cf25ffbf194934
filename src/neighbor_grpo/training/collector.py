"""Experience from rollouts: this rank's prompts, rolled out and scored, a few groups at a time, then credited."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from math import isfinite
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from neighbor_grpo.config import Config
from neighbor_grpo.files.images import key_frames, to_bytes
from neighbor_grpo.flow.streams import DRAW, NOISE, Iteration
from neighbor_grpo.methods.advantage import combine
from neighbor_grpo.methods.protocol import Method
from neighbor_grpo.methods.tree import Noise, Tree, side_by_side
from neighbor_grpo.models.conditioning import Cond
from neighbor_grpo.models.family import Family
from neighbor_grpo.models.quantization import fp8_products
from neighbor_grpo.models.sampling import batched_velocity, decode
from neighbor_grpo.models.text_cache import TextCache
from neighbor_grpo.prompts.prompt import Prompt
from neighbor_grpo.rewards.score import Failure, Scores
from neighbor_grpo.rewards.set import FailureCount, RewardSet, check_failed, joined
from neighbor_grpo.run import files
from neighbor_grpo.run.groups import Group
from neighbor_grpo.training.errors import NotFiniteError
from neighbor_grpo.training.experience import Experience
from neighbor_grpo.training.figures import reward_figures
from neighbor_grpo.training.phases import Phases
from neighbor_grpo.training.schedule import scheduled


@dataclass(frozen=True)
class Collected:
    """Hold rollouts and rewards.  P prompts on all ranks, p of them here; G samples each, M rewards, NaN without a score."""

    cond: Cond  # [p, ...]
    tree: Tree
    rewards: Tensor  # [M, p, G]
    pool: Tensor  # [M, P, G]
    shown: Tensor | None  # bytes of the first group's pictures, where trackers or the run show them


class Collector:
    """Roll out and score.  A group's noise comes from (seed, iteration, slot), so it is the same on any rank.

    drawing: a context in which the weights are those that roll out.
    """

    def __init__(
        self,
        model: Family,
        texts: TextCache,
        prompts: Sequence[Prompt],
        rewards: RewardSet,
        slots: range,
        config: Config,
        accelerator: Accelerator,
        phases: Phases,
        drawing: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        self.model, self.texts, self.prompts, self.rewards, self.slots = model, texts, prompts, rewards, slots
        self.config, self.accelerator, self.phases, self.drawing = config, accelerator, phases, drawing
        self.times = cache(model.times)  # of a number of transitions
        self.keep_on = torch.device("cpu") if config.batch.keep_on == "cpu" else accelerator.device

    def experience(self, n: int) -> Experience:
        """Return what iteration n learns from: rewards become advantages, and transitions become rows."""
        got = self.collect(n)
        method, reward, iteration = self.config.method, self.config.reward, Iteration(n, self.config.seed)
        with self.phases.time("update"):
            weights = torch.tensor(list(reward.train.values()))
            adv = combine(partial(method.credit, got.tree), got.rewards, got.pool, weights, reward.aggregate)
            draws = [iteration.of_slot(DRAW, slot) for slot in self.slots]
            updates = method.updates(got.tree, adv, draws, iteration)
        texts = [prompt.text for prompt in self._prompts_of(n)]
        return Experience(got.cond, updates, self._figures(got), texts, self._group(got, adv, texts[0]))

    def collect(self, n: int) -> Collected:
        """Roll out and score this rank's prompts of iteration n."""
        with self.phases.time("encode"):
            prompts = self._prompts_of(n)
            epoch = range(n + 1, min(n + 2 + len(self.prompts) // len(self.slots), self.config.iterations))
            coming = (prompt for later in epoch for prompt in self._prompts_of(later))
            cond = self.texts.encode(prompts, coming).to(self.accelerator.device)
        trees, pending, first = [], [], None
        size = max(1, self.config.batch.rollout // self.config.method.group_size)
        for rows in torch.arange(len(prompts)).split(size):  # as many groups as are rolled out at once
            tree, images = self._roll_out(n, rows, cond.take(rows))
            trees.append(tree)
            if first is None and self._is_shown(n):
                first = to_bytes(key_frames(images[0]) if images.ndim == 6 else images[0])
            with self.phases.time("reward"):
                pending.append(self.rewards.submit(images, [prompts[p] for p in rows]))
        with self.phases.time("reward"):
            pool, rewards = self._scored(n, joined([part.result() for part in pending]))
        return Collected(cond, side_by_side(trees), rewards, pool, first)

    def _is_shown(self, n: int) -> bool:
        """Return whether trackers or the run keep pictures of iteration n: the first, and those that end with an evaluation."""
        c, done, every = self.config, n + 1, self.config.evaluate.every
        tracked = bool(c.trackers.use and c.trackers.rollouts) and n % c.trackers.rollouts == 0
        kept = done in (1, c.iterations) or bool(every and done % every == 0)
        last = c.seconds is not None  # any may be the last one
        return self.accelerator.is_main_process and (tracked or kept or last)

    def _group(self, got: Collected, adv: Tensor, text: str) -> Group | None:
        """Return the first group as it is shown, where its pictures are kept."""
        if got.shown is None:
            return None
        rewards = [[value if isfinite(value) else None for value in row] for row in got.rewards[:, 0].tolist()]
        leaves = self.config.method.leaf_advantages(adv)
        advantages = leaves[0].tolist() if leaves.shape == got.rewards.shape[1:] else None
        return Group(text, got.shown, dict(zip(self.rewards.scorers, rewards, strict=True)), advantages)

    def _figures(self, got: Collected) -> dict[str, float]:
        """Return figures of the rewards of all ranks, of the rollout's cost, and of requests to scorers on servers."""
        group = self.config.method.group_size
        costs = {"nfe_old": got.tree.evaluations / group, "nfe_nominal": got.tree.nominal_evaluations / group}
        asked = {  # since the run began or was resumed: requests, retries, and faults by kind
            f"scorer/{name}/{kind}": count
            for name, scorer in self.rewards.scorers.items()
            for kind, count in scorer.counts.items()
        }
        return reward_figures(self.rewards.scorers, got.pool) | costs | asked

    def _prompts_of(self, n: int) -> list[Prompt]:
        """Return this rank's prompts in iteration n."""
        indices = scheduled(len(self.prompts), self.config.prompts.per_iteration, n, self.config.seed)
        return [self.prompts[indices[slot]] for slot in self.slots]

    def _roll_out(self, n: int, rows: Tensor, cond: Cond) -> tuple[Tree, Tensor]:
        """Return trees of some of this rank's groups, and their leaves' pictures [·, G, 3, H, W]."""
        tree = self._rolled(self.config.method, n, self._noise(n, rows, cond), cond, self.config.model.fp8_rollout)
        if not tree.leaves.isfinite().all():
            odd = [p for p, group in zip(rows.tolist(), tree.leaves, strict=True) if not group.isfinite().all()]
            prompts = ", ".join(repr(self._prompts_of(n)[p].text) for p in odd)
            raise NotFiniteError(f"x is not finite at the end of the rollout of iteration {n}, for {prompts}")
        return tree, self._decoded(tree)

    def _noise(self, n: int, rows: Tensor, cond: Cond) -> Noise:
        """Return the noise of some of this rank's groups, each from its own generator."""
        generators = self._generators(NOISE, n, rows)

        def noise(k: int) -> Tensor:
            return torch.stack([self.model.noise(k, generator) for generator in generators]).to(self.keep_on)

        return noise

    def _generators(self, stream: int, n: int, rows: Tensor) -> list[torch.Generator]:
        """Return a generator for each of some of this rank's groups."""
        iteration = Iteration(n, self.config.seed)
        return [iteration.of_slot(stream, self.slots[p]) for p in rows.tolist()]

    def _rolled(self, method: Method, n: int, noise: Noise, cond: Cond, fp8: bool) -> Tree:
        """Return the rollouts of a method.  fp8: products in 8 bits"""
        precision = fp8_products(self.model.transformer) if fp8 else nullcontext()
        with self.phases.time("rollout"), torch.no_grad(), self.drawing(), precision:
            velocity = batched_velocity(self.model, cond, self.config.batch.rollout)
            return method.rollout(velocity, noise, self.times(method.num_steps), Iteration(n, self.config.seed))

    def _decoded(self, tree: Tree) -> Tensor:
        """Return the pictures of the leaves [P, G, 3, H, W]."""
        with self.phases.time("decode"):
            return decode(self.model, tree.leaves, self.config.batch.decode)

    def _scored(self, n: int, scores: dict[str, Scores]) -> tuple[Tensor, Tensor]:
        """Return rewards of all ranks [M, P, G] and of this one [M, p, G]; too many failures stop all ranks alike."""
        group = self.config.method.group_size
        here = torch.stack([one.values for one in scores.values()]).view(len(scores), -1, group)
        pool = self._all_ranks(here)
        if pool.isnan().any():
            failures = self._failures(n, {name: one.failures for name, one in scores.items()})
            counts = {
                name: FailureCount(int(values.isnan().sum()), values.numel(), failures[name][0])
                for name, values in zip(scores, pool, strict=True)
                if values.isnan().any()
            }
            check_failed(counts, self.config.reward.max_failed)
        return pool, here

    def _failures(self, n: int, failures: dict[str, tuple[Failure, ...]]) -> dict[str, list[Failure]]:
        """Return the failures of all ranks, and write them to failures.jsonl."""
        ranks = gather_object([failures])
        every = {name: [failure for rank in ranks for failure in rank[name]] for name in failures}
        if self.accelerator.is_main_process and self.config.run_dir:
            files.record_failures(Path(self.config.run_dir), n + 1, every)
        return every

    def _all_ranks(self, rewards: Tensor) -> Tensor:
        """Gather rewards over ranks.  [M, p, G] -> [M, P, G]"""
        if self.accelerator.num_processes == 1:
            return rewards
        here = rewards.transpose(0, 1).contiguous().to(self.accelerator.device, torch.float32)
        return self.accelerator.gather(here).cpu().transpose(0, 1)
