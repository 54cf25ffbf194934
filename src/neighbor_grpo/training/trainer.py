"""The loop: collect, step, record.  Every method, every model.

Nothing random is kept between iterations (flow.streams), so a resumed run is the uninterrupted one.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import torch
from accelerate.utils import broadcast_object_list, gather_object

from neighbor_grpo.config import Config
from neighbor_grpo.rewards.score import RewardError
from neighbor_grpo.run import files, record, report
from neighbor_grpo.run.findings import EarlyWarnings
from neighbor_grpo.run.groups import Group, save_group
from neighbor_grpo.run.samples import save_samples
from neighbor_grpo.run.weights import keep_adapters
from neighbor_grpo.training import checkpoint
from neighbor_grpo.training.beginning import check_recorded
from neighbor_grpo.training.display import display_of
from neighbor_grpo.training.errors import NotFiniteError, RanksDifferError, TrainingError
from neighbor_grpo.training.experience import Experience
from neighbor_grpo.training.figures import phase_figures, reward_gap
from neighbor_grpo.training.gradients import Step, iteration_figures
from neighbor_grpo.training.parts import Parts
from neighbor_grpo.training.signals import GivenUpError, SignalError, StopRequest
from neighbor_grpo.training.trackers import PATIENCE


class Trainer:
    """Train: Trainer(config).run() is a whole run, Trainer.resume(run_dir).run() the rest of one."""

    def __init__(self, config: Config, resume: bool = False) -> None:
        parts = self.parts = Parts.assemble(config, resume)
        self.run_dir, self.config, self.trackers = parts.run_dir, parts.config, parts.trackers
        self.accelerator, self.learner = parts.accelerator, parts.learner
        self.source, self.stop, self.display = parts.source(), StopRequest(), display_of(self.main)
        parts.phases.shown, parts.trackers.say = self.display.phase, self.display.say
        begun, self.early = parts.beginning, EarlyWarnings(self.config)
        self.done, self.spent = begun.iteration, begun.seconds  # iterations, and seconds of training
        try:
            self.unrecorded = self.learner.load(begun.checkpoint) if begun.checkpoint else None
            check_recorded(self.run_dir, begun, self.unrecorded)
        except BaseException:
            parts.leave()
            raise
        self.base = begun.base  # figures of the evaluation that later ones are compared with
        self.enough: Callable[[], bool] | None = None  # asked after every evaluation: whether the run ends there
        self.group: Group | None = None  # of the last rollouts
        self.learning = self.ended = False  # the weights are between two iterations; the run stops early

    @classmethod
    def resume(cls, run_dir: str | Path, changes: Sequence[str] = ()) -> Self:
        """Return a trainer that resumes a run from its newest checkpoint, with changes such as "iterations=9"."""
        return cls(files.read_config(Path(run_dir), changes), resume=True)

    # ---------------------------------------------------------------- the run

    def run(self) -> Path:
        """Train to the end; return the run directory."""
        try:
            with self.display, self.stop.listening(), self._resumable():
                self._begin()
                began, start = time.perf_counter(), self.done
                while not self._over():
                    figures = self._iteration(self.done)
                    self.done, self.learning = self.done + 1, False
                    self.spent += files.training_seconds(figures)
                    self._conclude(figures)
                    seconds = (time.perf_counter() - began) / (self.done - start)
                    self.display.iteration(self.done, self.config.iterations, figures, seconds)
                    self.early.say(self.done, figures, self.display.say)
                    self._stop_for_signal()
                self._finish()
            self.trackers.finish(PATIENCE)
        finally:
            self.parts.leave()
        return self.run_dir

    def _begin(self) -> None:
        """Print the plan; write or bring up to date the files of the run; evaluate where nothing was evaluated yet."""
        c, begun = self.config, self.parts.beginning
        lines = self.parts.plan.lines(c, self.accelerator.num_processes, self.parts.estimate, self.parts.rate)
        self.display.say("\n".join([*lines, *self.parts.warnings(), *begun.said]))
        if begun.checkpoint is None:
            self._write(lines)
            self._save(0)
        elif self.main:
            files.rewind(self.run_dir, self.done)
            for line in files.read_metrics(self.run_dir):  # what a tracker lacks
                self.trackers.figures(line)
            checkpoint.drop_old(self.run_dir / "checkpoints", c.keep_checkpoints)  # which a full disk may have prevented
        if self.base is None:
            figures = {**(self.unrecorded or begun.line), "iteration": self.done, **self._evaluate(self.done)}
            self.base, self.unrecorded = figures, None
            self._amend(figures)
        if begun.checkpoint:
            self._write(lines)  # changes are in force once the evaluation that they ask for is there
        self.display.before(self.base)
        if self.unrecorded:
            self._conclude(self.unrecorded)

    def _amend(self, figures: dict[str, float]) -> None:
        if self.main:
            files.amend(self.run_dir, figures)
        self.trackers.figures(figures, again=True)

    def _write(self, plan: Sequence[str]) -> None:
        if self.main:
            keep_adapters(self.run_dir, self.config)
            files.begin(self.run_dir, self.config, plan, self.parts.beginning.record)

    def _conclude(self, figures: dict[str, float]) -> None:
        """Evaluate where it is time; record the last iteration; save where it is time."""
        self.unrecorded, every = figures, self.config.evaluate.every
        evaluated = self._over() or bool(every and self.done % every == 0)
        if self.group and (evaluated or self.done == 1):
            save_group(self.run_dir, self.done, self.group)
        if evaluated:
            figures |= self._evaluate(self.done)
            self.ended = self._is_hacked(figures)
        self.stop.finished()
        line = {"iteration": self.done, **figures}
        if self.main:
            files.record(self.run_dir, line)
        self.trackers.figures(line)
        self.unrecorded = None
        if evaluated and self.enough:
            self.ended |= broadcast_object_list([self.enough()])[0]
        if self._over() or self.done % self.config.save_every == 0:
            self._save(self.done)

    def _stop_for_signal(self) -> None:
        """Save and raise SignalError where a signal has come to any rank."""
        signum = next((came for came in gather_object([self.stop.signum]) if came is not None), None)
        if signum and not self._over():
            self._save(self.done)
            raise SignalError(signum, files.resume_command(self.run_dir))

    def _iteration(self, n: int) -> dict[str, float]:
        """Collect, step: return the figures of iteration n."""
        phases = self.parts.phases
        phases.clear()
        texts: Sequence[str] = ()
        try:
            with self.stop.interruptible(alone=self.alone):
                experience = self.source.experience(n)
            texts, self.group = experience.texts, experience.group
            self.trackers.rollout(n + 1, self.group)
            self._stop_for_signal()
            with phases.time("update"):
                self.learning = True
                steps = [self.learner.step(rows, experience.cond, n / self.config.iterations) for rows in experience.updates]
                self.learner.follow(n + 1)
        except NotFiniteError as error:
            raise self._diverged(error, texts) from error
        return self._figures(experience, steps) | self._times(experience)

    def _figures(self, experience: Experience, steps: list[Step]) -> dict[str, float]:
        """Return what the source and the loss say, and what the optimizer steps cost per sample."""
        figures = {**experience.figures, **iteration_figures([step.figures for step in steps]), "lr": self.learner.lr}
        trained, frozen = (sum(rows) / self.samples for rows in zip(*((s.trained, s.frozen) for s in steps), strict=True))
        return figures | {"nfe_theta": trained} | ({"nfe_frozen": frozen} if frozen else {})

    def _times(self, experience: Experience) -> dict[str, float]:
        """Return seconds by phase, and the share of the device's rate of matrix products that its work reached."""
        forwards, rows = self.samples * experience.figures.get("nfe_old", 0.0), sum(map(len, experience.updates))
        pictures = self.samples * (1 + experience.figures.get("scouts/drafts", 0.0)) if forwards else 0
        flops = self.parts.estimate.flops(forwards, pictures, rows)
        return phase_figures(self.parts.phases.seconds, flops, self.parts.rate)

    @property
    def samples(self) -> int:
        """Return the samples of this rank in an iteration."""
        return self.config.method.group_size * len(self.parts.slots)

    def _over(self) -> bool:
        """Return whether the run has had its iterations or its seconds, or stops early; the main rank's clock decides."""
        over = self.ended or self.done >= self.config.iterations
        if over or self.config.seconds is None:
            return over
        return broadcast_object_list([self.spent >= self.config.seconds])[0]

    def _is_hacked(self, figures: dict[str, float]) -> bool:
        """Return whether the trained reward has left a watched one behind by more than the run allows."""
        limit, gap = self.config.evaluate.early_stop, figures.get("eval/gap", 0.0)
        if hacked := limit is not None and gap > limit:
            self.display.say(f"stopped early: the trained reward has risen by {gap:.2f} stds more than a watched one")
        return hacked

    # ---------------------------------------------------------------- evaluation

    def _evaluate(self, iteration: int) -> dict[str, float]:
        """Measure the averaged weights on evaluation prompts and fixed seeds; keep pictures, failures, and the best weights."""
        began = time.perf_counter()
        self.display.phase("evaluate")
        with self.learner.averaged(), self.stop.interruptible(alone=self.alone):
            evaluated = self.parts.evaluator.evaluate() if iteration else self.parts.evaluator.before()
        figures = dict(evaluated.figures)
        gap = reward_gap(self.base or figures, figures, self.config.reward.train, self.config.watched)
        figures |= ({} if gap is None else {"eval/gap": gap}) | {"time/evaluate": time.perf_counter() - began}
        if self.main:
            prompts = [one.text for one in self.parts.evaluation_prompts]
            save_samples(self.run_dir / "samples", iteration, evaluated.pictures, prompts)
            self.trackers.evaluation(iteration, evaluated.pictures, prompts)
            files.record_failures(self.run_dir, iteration, evaluated.failures, evaluation=True)
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

    def _diverged(self, error: NotFiniteError, texts: Sequence[str]) -> TrainingError:
        """Save the weights before the error, and say where."""
        where = self.learner.save(self.run_dir / "failed", self.learner.updates, keep=1)
        if self.main:
            record.end(self.run_dir, "diverged")
        prompts = ", ".join(repr(texts[n]) for n in error.prompts if n < len(texts))
        return TrainingError(
            f"{error}{f', for {prompts}' if prompts else ''}; weights before it are in {where}. A smaller optimizer.lr or "
            f"method.temperature=dim often helps; resume from the last checkpoint with: {files.resume_command(self.run_dir)}"
        )

    @contextmanager
    def _resumable(self) -> Iterator[None]:
        """Turn what can end a run into an error that says how to resume it, after saving what can be saved."""
        command = files.resume_command(self.run_dir)
        try:
            yield
        except GivenUpError:
            assert self.stop.signum is not None
            self.stop.finished()
            if not self.learning:
                self._save(self.done)
            raise SignalError(self.stop.signum, command) from None
        except RewardError as error:
            self._save(self.done)  # nothing of the present iteration has been learned yet
            raise TrainingError(f"{error}; mend it and resume with: {command}") from error
        except torch.OutOfMemoryError as error:
            reason = str(error).split(". ")[0]
            raise TrainingError(
                f"the device's memory ran out after {self.done} iterations ({reason}): resume with smaller batches "
                f"(neighbor-grpo plan says what would fit): {command} batch.rollout=R batch.update=U batch.decode=D"
            ) from error
        except OSError as error:
            if error.filename is None:  # not a file of ours
                raise
            raise TrainingError(
                f"{error.filename}: {error.strerror}; mend it and resume from the last checkpoint with: {command}"
            ) from error

    # ---------------------------------------------------------------- files

    def _save(self, iteration: int) -> None:
        self.stop.finished()
        try:
            self.learner.check_ranks()
        except RanksDifferError as error:  # the last checkpoint, which was the same on all ranks, stays
            raise TrainingError(
                f"{error}: a rank's hardware or a collective failed, and the run cannot be trusted from there on. "
                f"Resume from the last checkpoint with: {files.resume_command(self.run_dir)}"
            ) from error
        self.learner.save(self.run_dir / "checkpoints", iteration, self.config.keep_checkpoints, self.unrecorded)

    def _finish(self) -> None:
        """Evaluate if the last iteration was not evaluated; export the averaged weights; write the report."""
        lines = broadcast_object_list([files.read_metrics(self.run_dir) if self.main else None])[0]
        if not files.evaluated(lines[-1:]):  # resumed with fewer iterations than were done
            self._amend(lines[-1] | self._evaluate(self.done))
        self.learner.export(self.run_dir)
        if self.main:
            report.write(self.run_dir)
            record.end(self.run_dir, "finished")
            self.display.say(f"done: {self.run_dir / 'report.html'}")
        self.accelerator.wait_for_everyone()

    # ---------------------------------------------------------------- ranks

    @property
    def main(self) -> bool:
        """Return whether this is the rank that writes and speaks."""
        return self.accelerator.is_main_process

    @property
    def alone(self) -> bool:
        """Return whether there are no other ranks."""
        return self.accelerator.num_processes == 1
