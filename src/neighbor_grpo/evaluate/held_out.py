"""What a run is judged by: the same prompts and noise at every evaluation, divided over the ranks."""

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from neighbor_grpo.config import Config
from neighbor_grpo.evaluate.measures import summary
from neighbor_grpo.evaluate.metrics import Metric, measure
from neighbor_grpo.files.images import key_frames, to_bytes
from neighbor_grpo.models.registry import FlowModel
from neighbor_grpo.models.sampling import fixed_noise, sample
from neighbor_grpo.models.text_cache import TextCache
from neighbor_grpo.prompts.reading import Prompt
from neighbor_grpo.rewards.score import Failure, Scores
from neighbor_grpo.rewards.scorer import Scorer
from neighbor_grpo.rewards.set import RewardSet, joined


class HeldOut:
    def __init__(
        self,
        model: FlowModel,
        texts: TextCache,
        prompts: Sequence[Prompt],
        rewards: Mapping[str, Scorer],
        metrics: Mapping[str, Metric],
        config: Config,
        accelerator: Accelerator,
    ) -> None:
        self.model, self.texts, self.prompts, self.metrics = model, texts, prompts, metrics
        self.rewards, self.config, self.accelerator = RewardSet(rewards), config, accelerator

    def __call__(self) -> tuple[dict[str, float], Tensor, dict[str, tuple[Failure, ...]]]:
        """Figures "eval/...", pictures [P, S, 3, H, W] as they are saved, and what could not be scored; the same on all ranks.

        Of videos the pictures are their key frames [P, S, F, 3, H, W].  Every rank draws as many prompts, the last one more
        than once where they do not divide, and counted once: all run the same forwards.
        """
        e, total = self.config.evaluate, len(self.prompts)
        share = -(-total // self.accelerator.num_processes)
        first = self.accelerator.process_index * share
        numbers, size = range(first, first + share), max(1, self.config.batch.rollout // e.seeds)
        parts = gather_object([self._drawn(numbers[n : n + size]) for n in range(0, share, size)])
        parts = [part for part in parts if len(part[1])]
        scores = joined([part[0] for part in parts])
        images = torch.cat([part[1] for part in parts]) / 255
        figures: dict[str, float] = {}
        for name, one in scores.items():
            figures |= summary(name, one.values, self.config.reward.max_failed)
        if self.accelerator.is_main_process:
            texts = [prompt.text for prompt in self.prompts]
            figures |= {f"eval/{name}": measure(metric, images, texts).mean().item() for name, metric in self.metrics.items()}
        return broadcast_object_list([figures])[0], images, {name: one.failures for name, one in scores.items()}

    def _drawn(self, numbers: Sequence[int]) -> tuple[dict[str, Scores], Tensor]:
        """Scores of those of these prompts' pictures that there are, and the pictures as bytes."""
        e, batch = self.config.evaluate, self.config.batch
        there = [n for n in numbers if n < len(self.prompts)]
        drawn = there + [len(self.prompts) - 1] * (len(numbers) - len(there))
        images = to_bytes(
            sample(
                self.model,
                self.texts([self.prompts[n] for n in drawn]),
                fixed_noise(self.model, drawn, e.seeds),
                e.num_steps or self.config.method.num_steps,
                e.solver,
                batch.rollout,
                batch.decode,
            )
        )[: len(there)]
        scores = self.rewards.score(images / 255, [self.prompts[n] for n in there]) if there else {}
        return scores, key_frames(images) if images.ndim == 6 else images
