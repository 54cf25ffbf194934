"""The loop: collect, step, record.  Every method, every model.

Nothing random is kept between iterations (flow.streams), so a resumed run is the uninterrupted one.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from accelerate.utils import broadcast_object_list, gather_object

from neighbor_grpo.config import Config
from neighbor_grpo.errors import UserError
from neighbor_grpo.rewards.score import RewardError
from neighbor_grpo.run import files, report
from neighbor_grpo.training import checkpoint
from neighbor_grpo.training.display import display_of
from neighbor_grpo.training.experience import Experience
from neighbor_grpo.training.figures import phase_figures, reward_gap
from neighbor_grpo.training.gradients import iteration_figures
from neighbor_grpo.training.learner import NotFiniteError, RanksDifferError
from neighbor_grpo.training.parts import Parts
from neighbor_grpo.training.signals import StopRequest


class TrainingError(UserError):
    """Say why the run stopped, where its state is saved, and how to resume it."""


class SignalError(Exception):
    """Say that a signal stopped the run after a whole iteration, with a checkpoint."""

    def __init__(self, signum: int, command: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; resume with: {command}")
        self.signum = signum


class Trainer:
    """Train: Trainer(config).run() is a whole run, Trainer.resume(run_dir).run() the rest of one."""

    def __init__(self, config: Config, resume: bool = False) -> None:
        parts = self.parts = Parts.assemble(config, resume)
        self.run_dir, self.config, self.accelerator, self.learner = (
            parts.run_dir,
            parts.config,
            parts.accelerator,
            parts.learner,
        )
        self.source, self.stop, self.display = parts.source(), StopRequest(), display_of(self.main)
        parts.phases.shown = self.display.phase
        self.fresh = not (resume and checkpoint.finished(self.run_dir / "checkpoints"))
        self.start = 0 if self.fresh else self.learner.load(self.run_dir / "checkpoints")
        self.done = self.start  # iterations
        self.base: dict[str, float] = {}  # figures before the first iteration

    @classmethod
    def resume(cls, run_dir: str | Path) -> Self:
        """Return a trainer that resumes the run in `run_dir` from its newest checkpoint."""
        return cls(files.read_config(Path(run_dir)), resume=True)

    # ---------------------------------------------------------------- the run

    def run(self) -> Path:
        """Train to the end; return the run directory."""
        self._introduce()
        recorded = broadcast_object_list([files.rewind(self.run_dir, self.start) if self.main else None])[0]
        spent = recorded.seconds
        with self.display, self.stop.listening(), self._resumable():
            if self.fresh:
                self._save(0)
            self.base = recorded.before or self._record({"iteration": 0, **self._evaluate(0)})
            self.display.before(self.base)
            began = time.perf_counter()
            over = self._over(spent)
            while not over:
                figures, self.done = self._iteration(self.done), self.done + 1
                spent += files.training_seconds(figures)
                over = self._over(spent)
                if over or (self.config.evaluate.every and self.done % self.config.evaluate.every == 0):
                    figures |= self._evaluate(self.done)
                    over = over or self._hacked(figures)
                self._record({"iteration": self.done, **figures})
                seconds = (time.perf_counter() - began) / (self.done - self.start)
                self.display.iteration(self.done, self.config.iterations, figures, seconds)
                signum = self._any_rank(self.stop.signum)
                if signum or over or self.done % self.config.save_every == 0:
                    self._save(self.done)
                if signum and not over:
                    raise SignalError(signum, files.resume_command(self.run_dir))
        self._finish()
        return self.run_dir

    def _iteration(self, n: int) -> dict[str, float]:
        """Collect, step: return the figures of iteration n."""
        phases = self.parts.phases
        phases.clear()
        experience = self.source.experience(n)
        with phases.time("update"):
            try:
                steps = [self.learner.step(rows, experience.cond) for rows in experience.updates]
            except NotFiniteError as error:
                raise self._diverged(error) from error
            self.learner.follow(n + 1)
        return self._figures(experience, steps) | self._times(experience)

    def _figures(self, experience: Experience, steps: list[dict[str, float]]) -> dict[str, float]:
        """Return what the source and the loss say, and what the optimizer steps cost per sample."""
        samples = self.config.method.group_size * len(self.parts.slots)
        figures = {**experience.figures, **iteration_figures(steps), "lr": self.learner.lr}
        trained, frozen = (sum(step[name] for step in steps) / samples for name in ("rows/trained", "rows/frozen"))
        figures = {name: value for name, value in figures.items() if not name.startswith("rows/")}
        return figures | {"nfe_theta": trained} | ({"nfe_frozen": frozen} if frozen else {})

    def _times(self, experience: Experience) -> dict[str, float]:
        """Return seconds by phase, and the share of the device's rate of matrix products that its work reached."""
        samples = self.config.method.group_size * len(self.parts.slots)
        forwards, rows = samples * experience.figures.get("nfe_old", 0.0), sum(map(len, experience.updates))
        flops = self.parts.estimate.flops(forwards, samples if forwards else 0, rows)
        return phase_figures(self.parts.phases.seconds, flops, self.parts.rate)

    def _over(self, spent: float) -> bool:
        """Return whether the run has had its iterations or its seconds; the main rank's clock decides."""
        if self.done == self.config.iterations or self.config.seconds is None:
            return self.done == self.config.iterations
        return broadcast_object_list([spent >= self.config.seconds])[0]

    def _hacked(self, figures: dict[str, float]) -> bool:
        """Return whether the trained reward has left a watched one behind by more than the run allows."""
        limit = self.config.evaluate.early_stop
        hacked = limit is not None and figures.get("eval/gap", 0.0) > limit
        if hacked:
            self.display.say(
                f"stopped early: the trained reward has risen by {figures['eval/gap']:.2f} stds more than a watched one"
            )
        return hacked

    # ---------------------------------------------------------------- evaluation

    def _evaluate(self, iteration: int) -> dict[str, float]:
        """Measure the averaged weights on evaluation prompts and fixed seeds; keep pictures, failures, and the best weights."""
        e, began = self.config.evaluate, time.perf_counter()
        self.display.phase("evaluate")
        with self.learner.averaged():
            evaluated = self.parts.evaluator.evaluate()
        figures = dict(evaluated.figures)
        gap = reward_gap(self.base or figures, figures, self.config.reward.train, self.config.watched)
        figures |= ({} if gap is None else {"eval/gap": gap}) | {"time/evaluate": time.perf_counter() - began}
        if self.main:
            shown = evaluated.pictures[: e.gallery, :4]
            prompts = [prompt.text for prompt in self.parts.evaluation_prompts]
            report.save_samples(self.run_dir / "samples", iteration, shown, prompts)
            for name, found in evaluated.failures.items():
                files.record_failures(self.run_dir, iteration, name, found)
        self.display.evaluation(iteration, figures)
        self._keep_best(iteration, figures)
        self.accelerator.wait_for_everyone()
        return figures

    def _keep_best(self, iteration: int, figures: dict[str, float]) -> None:
        """Export the weights to best/ if their best measure is the highest so far; "-name" means that less is better."""
        best = self.parts.best
        if best and (name := f"eval/{best.removeprefix('-')}") in figures:
            sign = -1 if best.startswith("-") else 1
            self.learner.keep_best(self.run_dir / "best", iteration, best, sign * figures[name])

    # ---------------------------------------------------------------- errors

    def _diverged(self, error: NotFiniteError) -> TrainingError:
        """Save the weights before the error, and say where."""
        where = self.learner.save(self.run_dir / "failed", self.learner.updates)
        return TrainingError(
            f"{error}; weights before it are in {where}. A smaller optimizer.lr or method.temperature=dim often helps; resume "
            f"from the last checkpoint with: {files.resume_command(self.run_dir)}"
        )

    @contextmanager
    def _resumable(self) -> Iterator[None]:
        """Turn reward failures and out-of-memory errors into a TrainingError that says how to resume."""
        resume = f"resume with: {files.resume_command(self.run_dir)}"
        try:
            yield
        except RewardError as error:
            self._save(self.done)  # nothing of the present iteration has been learned yet
            raise TrainingError(f"{error}; mend it and {resume}") from error
        except torch.OutOfMemoryError as error:
            reason = str(error).split(". ")[0]
            raise TrainingError(
                f"the device's memory ran out after {self.done} iterations ({reason}): set batch.rollout, batch.update or "
                f"batch.decode lower in {self.run_dir / 'config.yaml'} (neighbor-grpo plan says what would fit) and {resume}"
            ) from error

    # ---------------------------------------------------------------- files

    def _introduce(self) -> None:
        """Print the plan and warnings; write the first files of a new run."""
        c, ranks = self.config, self.accelerator.num_processes
        lines = self.parts.plan.lines(c, ranks, self.parts.estimate, self.parts.rate)
        if self.fresh and self.main:
            files.begin(self.run_dir, c, lines)
        self.display.say("\n".join(lines))
        if c.model.cfg != 1:
            self.display.say(f"warning: model.cfg = {c.model.cfg:g} doubles every forward; methods are published without it")
        if c.model.quantize in ("int8", "fp8") and not c.model.gradient_checkpointing:
            self.display.say(
                "warning: model.quantize saves no memory in the update, where autograd keeps unpacked weights: set "
                "model.gradient_checkpointing=true"
            )

    def _save(self, iteration: int) -> None:
        try:
            self.learner.check_ranks()
        except RanksDifferError as error:  # the last checkpoint, which was the same on all ranks, stays
            raise TrainingError(
                f"{error}: a rank's hardware or a collective failed, and the run cannot be trusted from there on. "
                f"Resume from the last checkpoint with: {files.resume_command(self.run_dir)}"
            ) from error
        self.learner.save(self.run_dir / "checkpoints", iteration)

    def _record(self, figures: dict[str, Any]) -> dict[str, Any]:
        """Write one line of metrics.jsonl; return it."""
        if self.main:
            files.record(self.run_dir, figures)
        return figures

    def _finish(self) -> None:
        """Export the averaged weights and write the report."""
        self.learner.export(self.run_dir)
        if self.main:
            report.write(self.run_dir)
            self.display.say(f"done: {self.run_dir / 'report.html'}")
        self.accelerator.wait_for_everyone()

    # ---------------------------------------------------------------- ranks

    @property
    def main(self) -> bool:
        """Return whether this is the rank that writes and speaks."""
        return self.accelerator.is_main_process

    def _any_rank(self, value: int | None) -> int | None:
        """Return the first value that is not None on any rank; the same on every rank."""
        return next((v for v in gather_object([value]) if v is not None), None)
