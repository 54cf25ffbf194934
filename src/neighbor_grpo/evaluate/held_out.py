"""What a run is judged by: the same prompts and noise at every evaluation, divided over the ranks."""

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from neighbor_grpo.config import Config
from neighbor_grpo.data import Prompt, TextCache
from neighbor_grpo.evaluate.measures import Metric, summary
from neighbor_grpo.models import FlowModel
from neighbor_grpo.rewards.panel import Panel, joined
from neighbor_grpo.rewards.score import Failure, Reward
from neighbor_grpo.sampling import as_saved, fixed_noise, sample


class HeldOut:
    def __init__(
        self, model: FlowModel, texts: TextCache, prompts: Sequence[Prompt], rewards: Mapping[str, Reward],
        metrics: Mapping[str, Metric], config: Config, accelerator: Accelerator,
    ) -> None:
        self.model, self.texts, self.prompts, self.metrics = model, texts, prompts, metrics
        self.panel, self.config, self.accelerator = Panel(rewards), config, accelerator

    def __call__(self) -> tuple[dict[str, float], Tensor, dict[str, tuple[Failure, ...]]]:
        """Figures "eval/...", pictures [P, S, 3, H, W] as they are saved, and what could not be scored; the same on all ranks.

        Every rank draws as many prompts, the last one more than once where they do not divide: all run the same forwards.
        """
        e, batch, total = self.config.evaluate, self.config.batch, len(self.prompts)
        share = -(-total // self.accelerator.num_processes)
        first = self.accelerator.process_index * share
        numbers = [min(n, total - 1) for n in range(first, first + share)]
        prompts = [self.prompts[n] for n in numbers]
        images = as_saved(sample(
            self.model, self.texts([prompt.text for prompt in prompts]), fixed_noise(self.model, numbers, e.seeds),
            e.num_steps or self.config.method.num_steps, e.solver, batch.rollout, batch.decode,
        ))
        here = (self.panel(images, prompts), (images * 255).round().byte())
        parts = [here] if self.accelerator.num_processes == 1 else gather_object([here])
        scores = joined([part[0] for part in parts])
        images = torch.cat([part[1] for part in parts])[:total] / 255
        figures: dict[str, float] = {}
        for name, one in scores.items():
            figures |= summary(name, one.values[: total * e.seeds], self.config.reward.max_failed)
        if self.accelerator.is_main_process:
            texts = [prompt.text for prompt in self.prompts]
            figures |= {f"eval/{name}": metric(images, texts).mean().item() for name, metric in self.metrics.items()}
        return broadcast_object_list([figures])[0], images, {name: one.failures for name, one in scores.items()}
