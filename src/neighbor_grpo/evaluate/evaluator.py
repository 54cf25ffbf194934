"""The evaluation inside a run: the same prompts and noise every time, divided over the ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from neighbor_grpo.config import Config
from neighbor_grpo.evaluate.measures import Measures, summary
from neighbor_grpo.files.images import key_frames, to_bytes
from neighbor_grpo.models.family import Family
from neighbor_grpo.models.sampling import fixed_noise, sample
from neighbor_grpo.models.text_cache import TextCache
from neighbor_grpo.prompts.prompt import Prompt
from neighbor_grpo.rewards.score import Failure, Scores
from neighbor_grpo.rewards.set import RewardSet, joined

SHOWN = 4  # pictures of a prompt that are shown


@dataclass(frozen=True)
class Evaluated:
    """Hold the outcome of one evaluation; the same on all ranks."""

    figures: dict[str, float]  # "eval/...", "eval_spread/..." and "eval_failed/..."
    pictures: Tensor  # that are shown, [P, S, 3, H, W] in [0, 1]; of videos their key frames [P, S, F, 3, H, W]
    failures: dict[str, tuple[Failure, ...]]  # pictures without a score, by reward


def conditions(config: Config) -> str:
    """Word all that decides an evaluation of the untrained model: runs that agree in it begin with the same figures.

    The seed of a run and its method do not belong to it: evaluations have noise of their own.
    """
    e, batch = config.evaluate, config.batch
    sampler = e.model_copy(
        update={"num_steps": e.num_steps or config.method.num_steps, "every": 0, "best": None, "early_stop": None}
    )
    sections = (config.model, config.prompts.model_copy(update={"per_iteration": 1}), config.reward, sampler)
    return "\n".join([*(section.model_dump_json() for section in sections), f"{config.device} {batch.rollout} {batch.decode}"])


@dataclass(frozen=True)
class _Part:
    """Hold pictures of some prompts and their scores."""

    scores: dict[str, Scores]
    pictures: Tensor  # bytes


class Evaluator:
    """Evaluate a model on the evaluation prompts with fixed seeds; its size and guidance may be others than in training."""

    def __init__(
        self,
        model: Family,
        texts: TextCache,
        prompts: Sequence[Prompt],
        measures: Measures,
        config: Config,
        accelerator: Accelerator,
    ) -> None:
        changes = config.evaluate.model_changes()
        self.model = model.with_settings(**changes) if changes else model
        self.texts = texts.of(self.model)
        self.prompts, self.metrics = prompts, measures.metrics
        self.rewards, self.config, self.accelerator = RewardSet(measures.rewards), config, accelerator
        self.known: dict[str, Evaluated] = {}  # of untrained models, by their conditions: the runs of a comparison share it

    def before(self) -> Evaluated:
        """Return the evaluation of the untrained model, made unless it is known."""
        key = conditions(self.config)
        if key not in self.known:
            self.known[key] = self.evaluate()
        return self.known[key]

    def evaluate(self) -> Evaluated:
        """Draw the pictures of all prompts and measure them with the model's present weights."""
        e, total = self.config.evaluate, len(self.prompts)
        # Every rank draws equally many prompts, so that all ranks run the same forwards; surplus prompts are not counted.
        share = -(-total // self.accelerator.num_processes)
        first = self.accelerator.process_index * share
        numbers, size = range(first, first + share), max(1, self.config.batch.rollout // e.seeds)
        parts = gather_object([self._draw(numbers[n : n + size]) for n in range(0, share, size)])
        parts = [part for part in parts if len(part.pictures)]
        scores = joined([part.scores for part in parts])
        images = torch.cat([part.pictures for part in parts]) / 255
        figures: dict[str, float] = {}
        for name, one in scores.items():
            figures |= summary(name, one.values, self.config.reward.max_failed)
        if self.accelerator.is_main_process:
            texts = [prompt.text for prompt in self.prompts]
            figures |= {f"eval/{name}": metric.measure(images, texts).mean().item() for name, metric in self.metrics.items()}
        shown = images[: e.gallery, :SHOWN].clone()  # so that the others are not kept
        return Evaluated(broadcast_object_list([figures])[0], shown, {name: one.failures for name, one in scores.items()})

    def _draw(self, numbers: Sequence[int]) -> _Part:
        """Draw and score the pictures of these prompts; draw the last prompt in place of numbers beyond it."""
        e, batch = self.config.evaluate, self.config.batch
        counted = [n for n in numbers if n < len(self.prompts)]
        drawn = counted + [len(self.prompts) - 1] * (len(numbers) - len(counted))
        images = to_bytes(
            sample(
                self.model,
                self.texts.encode([self.prompts[n] for n in drawn]),
                fixed_noise(self.model, drawn, e.seeds),
                e.num_steps or self.config.method.num_steps,
                e.solver,
                batch.rollout,
                batch.decode,
            )
        )[: len(counted)]
        scores = self.rewards.score(images / 255, [self.prompts[n] for n in counted]) if counted else {}
        return _Part(scores, key_frames(images) if images.ndim == 6 else images)
