"""What the checks before a run look at: the run's own parts, its first experiences, and the pictures that were scored."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from neighbor_grpo.config import Config, Trackers
from neighbor_grpo.errors import UserError
from neighbor_grpo.methods.rows import Rows
from neighbor_grpo.models.conditioning import Cond
from neighbor_grpo.models.sampling import fixed_noise, sample
from neighbor_grpo.prompts.prompt import Prompt
from neighbor_grpo.rewards.score import Scores
from neighbor_grpo.rewards.set import RewardSet
from neighbor_grpo.training.experience import Experience, Source
from neighbor_grpo.training.gradients import accumulate, iteration_figures
from neighbor_grpo.training.parts import Parts

Figures = dict[str, float]
SAMPLED = 2  # prompts, and pictures of each, whose movement is measured


@dataclass(frozen=True)
class Seen:
    """Hold pictures [P, G, 3, H, W] of P prompts, and their scores by reward."""

    images: Tensor
    prompts: Sequence[Prompt]
    scores: dict[str, Scores]

    def table(self, name: str) -> Tensor:
        """Return the scores of a reward.  [P, G]"""
        return self.scores[name].values.view(self.images.shape[:2])


class Recorder(RewardSet):
    """Score as the run's rewards do, and keep the pictures."""

    def __init__(self, rewards: RewardSet) -> None:
        super().__init__(rewards.scorers)
        self.seen: list[Seen] = []

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> dict[str, Scores]:
        """Score pictures and keep them with their scores."""
        scores = super().score(images, prompts)
        self.seen.append(Seen(images, prompts, scores))
        return scores


class Patient:
    """Hold a run that is assembled and never recorded: nothing of it is written into a run directory."""

    def __init__(self, config: Config, aside: Path) -> None:
        o = config.optimizer.model_copy(update={"warmup": 0})  # the rate that is looked at is the full one
        # the parts claim a run directory; the collector writes failures into it
        config = config.model_copy(update={"optimizer": o, "run_dir": str(aside / "run"), "trackers": Trackers()})
        parts = Parts.assemble(config)
        if parts.accelerator.num_processes > 1:
            raise UserError("doctor looks at one process: start it without accelerate or torchrun")
        self.recorder = Recorder(parts.rewards)
        self.parts: Parts = replace(parts, rewards=self.recorder)
        self.config = self.parts.config
        self.weights = self.parts.learner.weights
        self._kept = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self._experiences: dict[int, Experience] = {}
        self.moved = 0.0  # by an iteration's steps, once it is known: root mean square of the pictures

    @cached_property
    def source(self) -> Source:
        """Return what makes the run's experiences."""
        return self.parts.source()

    def experience(self, n: int) -> Experience:
        """Return what iteration n would learn from, by the weights before training; kept, and made once."""
        if n not in self._experiences:
            self._experiences[n] = self.source.experience(n)
        return self._experiences[n]

    def forget(self, n: int) -> None:
        """Drop an experience, which may be large; the first one stays."""
        if n:
            self._experiences.pop(n, None)

    @property
    def seen(self) -> list[Seen]:
        """Return the pictures that were scored, by the weights before training."""
        return self.recorder.seen

    def step(self, experience: Experience) -> Figures:
        """Take the optimizer steps of an iteration; return its figures."""
        return iteration_figures([self.parts.learner.step(rows, experience.cond).figures for rows in experience.updates])

    def gradient(self, rows: Rows, cond: Cond) -> list[Tensor]:
        """Return the gradient of the mean loss of these rows, by weight."""
        learner, weights = self.parts.learner, list(self.weights.values())
        learner.optimizer.zero_grad()
        size = self.config.batch.update
        accumulate(
            self.config.method, learner.policy_of(cond), learner.transformer, rows, size, weights, self.parts.accelerator
        )
        gradient = [weight.grad for weight in weights if weight.grad is not None]
        learner.optimizer.zero_grad()
        return gradient

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Put the weights before training back at the end, with an optimizer that has seen nothing."""
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in self.weights.items():
                    weight.copy_(self._kept[name])
            self.parts.learner.optimizer.state.clear()
            self.parts.learner.optimizer.zero_grad()

    @contextmanager
    def rate_times(self, factor: float) -> Iterator[None]:
        """Multiply the learning rate for a while."""
        learner = self.parts.learner
        kept = learner.config
        o = kept.optimizer
        learner.config = kept.model_copy(update={"optimizer": o.model_copy(update={"lr": o.lr * factor})})
        try:
            yield
        finally:
            learner.config = kept

    def pictures(self, prompts: Sequence[int], seeds: int) -> Tensor:
        """Draw pictures [P, S, ...] of training prompts from fixed noise, by the present weights."""
        e, model = self.config.evaluate, self.parts.model
        steps = e.num_steps or self.config.method.num_steps
        noise, batch = fixed_noise(model, prompts, seeds), self.config.batch
        return sample(model, self.parts.conditioning(prompts), noise, steps, e.solver, batch.rollout, batch.decode)


@contextmanager
def admitted(config: Config) -> Iterator[Patient]:
    """Assemble a run in a temporary place."""
    with TemporaryDirectory(prefix="neighbor-grpo-") as aside:
        patient = Patient(config, Path(aside))
        try:
            yield patient
        finally:
            patient.parts.leave()


def rows_of(experience: Experience, prompt: int) -> Rows | None:
    """Return the rows of one group in all optimizer steps of an iteration; None without any."""
    parts = [chosen(rows, rows.prompt == prompt) for rows in experience.updates]
    return type(parts[0]).cat(parts) if sum(map(len, parts)) else None


def chosen(rows: Rows, which: Tensor) -> Rows:
    """Return the rows that are marked.  which [R] bool"""
    at = which.nonzero().flatten()
    return type(rows)(**{f.name: getattr(rows, f.name)[at.to(getattr(rows, f.name).device)] for f in fields(rows)})


def thinned(gradient: Sequence[Tensor], count: int) -> Tensor:
    """Return about `count` of the numbers of a gradient, evenly spread over it."""
    step = -(-sum(part.numel() for part in gradient) // count)
    return torch.cat([part.flatten()[::step].float().cpu() for part in gradient])
