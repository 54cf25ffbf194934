"""The loop: prompts -> rollout -> pictures -> rewards -> decisions -> optimizer steps.  Every method, every model.

Nothing random is kept between iterations: noise and draws of a group come from (seed, iteration, slot), so a resumed
run is the uninterrupted one, and a group is the same on whichever rank it lies.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from neighbor_grpo.config import Config
from neighbor_grpo.errors import UserError
from neighbor_grpo.evaluate.held_out import HeldOut
from neighbor_grpo.evaluate.measures import load_measures
from neighbor_grpo.flow.streams import generator
from neighbor_grpo.methods.advantage import combine
from neighbor_grpo.methods.tree import Decisions, Tree
from neighbor_grpo.models.registry import pick_device
from neighbor_grpo.models.text_cache import TextCache
from neighbor_grpo.planning.estimate import estimate
from neighbor_grpo.planning.footprint import matrix_rate, memory_of
from neighbor_grpo.planning.plan import plan, refuse
from neighbor_grpo.prompts.reading import read_prompts
from neighbor_grpo.rewards.registry import check_scorers
from neighbor_grpo.rewards.score import RewardError
from neighbor_grpo.rewards.set import load_panel
from neighbor_grpo.run import files, report
from neighbor_grpo.run.weights import load_base
from neighbor_grpo.training import checkpoint
from neighbor_grpo.training.collector import Collector
from neighbor_grpo.training.figures import (
    Phases,
    Stop,
    health_figures,
    phase_figures,
    progress,
    reward_figures,
    reward_gap,
    training_seconds,
)
from neighbor_grpo.training.learner import Learner, NotFinite, RanksDiffer
from neighbor_grpo.training.ranks import slots_of_rank

DRAW = 2  # stream of random numbers, beside the collector's


class TrainingError(UserError):
    """The run cannot go on; its state is saved and the message says why and where."""


class Interrupted(Exception):
    """Stopped by a signal after a whole iteration, with a checkpoint."""

    def __init__(self, signum: int, how_to_go_on: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; go on with: {how_to_go_on}")
        self.signum = signum


class Trainer:
    """Trainer(config).run() is a whole training run; Trainer.resume(run_dir).run() the rest of one."""

    def __init__(self, config: Config, resume: bool = False) -> None:
        self.accelerator = Accelerator(cpu=pick_device(config.device).type == "cpu", mixed_precision="no")
        slots = slots_of_rank(config.prompts.per_iteration, self.accelerator)
        self.run_dir = Path(config.run_dir or broadcast_object_list([files.free()])[0])
        self.config = config.model_copy(update={"run_dir": str(self.run_dir)})
        if not resume:
            files.refuse_another(self.run_dir)
        self.prompts = read_prompts(config.prompts.path)
        self.held_out = read_prompts(config.prompts.eval_path or config.prompts.path, held_out=True)[: config.evaluate.prompts]
        check_scorers(config.reward.scorers, [*config.reward.train, *config.watched])
        self.panel = load_panel(list(config.reward.train), config.reward.scorers, config.reward.overlap)
        watched, metrics = load_measures(config.watched, config.reward.scorers)
        self.best = config.evaluate.best or next(iter(watched), None)
        if self.best and self.best.removeprefix("-") not in [*config.reward.train, *config.watched]:
            raise UserError(
                f"evaluate.best: {self.best!r} is not measured; measured are "
                f"{', '.join([*config.reward.train, *config.watched])}"
            )
        self.plan = plan(config)
        device, ranks = self.accelerator.device, self.accelerator.num_processes
        self.estimate = estimate(config, device.type, ranks, self.accelerator.is_fsdp2)
        if not self.accelerator.is_fsdp2:  # of which what is gathered for a moment is not estimated
            refuse(config, self.estimate, device.type, memory_of(device), ranks)
        self.model = load_base(config, device)
        self.rate = matrix_rate(device, self.model.dtype)
        self.learner = Learner(self.model, config, self.accelerator)
        texts = TextCache(self.model, Path(config.prompts.cache_dir).expanduser(), config.prompts.cache_gb)
        self.start, self.phases, self.stop = 0, Phases(device), Stop()
        self.collector = Collector(
            self.model, texts, self.prompts, self.panel, slots, self.config, self.accelerator, self.phases
        )
        self.held = HeldOut(
            self.model, texts, self.held_out, self.panel.rewards | watched, metrics, self.config, self.accelerator
        )
        self.fresh = not (resume and checkpoint.finished(self.run_dir / "checkpoints"))
        if not self.fresh:
            self.start = self.learner.load(self.run_dir / "checkpoints")
            if self.main:
                files.rewind(self.run_dir, self.start)
        self.done, self.base = self.start, {}  # iterations, and the figures before the first

    @classmethod
    def resume(cls, run_dir: str | Path) -> "Trainer":
        """The run in `run_dir`, at its newest checkpoint."""
        return cls(files.config_of(Path(run_dir)), resume=True)

    # ---------------------------------------------------------------- the run

    def run(self) -> Path:
        """Train; the run directory."""
        lines = self._plan_lines()
        if self.fresh and self.main:
            files.begin(self.run_dir, self.config, lines)
        self._say("\n".join(lines))
        if self.config.model.cfg != 1:
            self._say(f"warning: model.cfg = {self.config.model.cfg:g} doubles every forward; methods are published without it")
        if self.config.model.quantize in ("int8", "fp8") and not self.config.model.gradient_checkpointing:
            self._say(
                "warning: without model.gradient_checkpointing autograd keeps what model.quantize unpacks: no memory is "
                "saved in the update"
            )
        evaluated = broadcast_object_list([bool(files.metrics(self.run_dir))])[0]
        with self.stop.listening(), self._resumable():
            if self.fresh:
                self._save(0)
            if not evaluated:
                self._record({"iteration": 0, **self._evaluate(0)})
            began = time.perf_counter()
            self.base = broadcast_object_list([files.metrics(self.run_dir)[:1]])[0][0]
            spent = sum(map(training_seconds, files.metrics(self.run_dir)))
            over = self._over(spent)
            while not over:
                figures, self.done = self._iteration(self.done), self.done + 1
                spent += training_seconds(figures)
                over = self._over(spent)
                every = self.config.evaluate.every
                if over or (every and self.done % every == 0):
                    figures |= self._evaluate(self.done)
                    over = over or self._hacked(figures)
                self._record({"iteration": self.done, **figures})
                seconds = (time.perf_counter() - began) / (self.done - self.start)
                self._say(progress(self.done, self.config.iterations, figures, seconds))
                signum = self._any_rank(self.stop.signum)
                if signum or over or self.done % self.config.save_every == 0:
                    self._save(self.done)
                if signum and not over:
                    raise Interrupted(signum, files.resume_command(self.run_dir))
        self._finish()
        return self.run_dir

    def _over(self, spent: float) -> bool:
        """Whether the run has had its iterations or its seconds; of these the main rank's clock decides."""
        if self.done == self.config.iterations or self.config.seconds is None:
            return self.done == self.config.iterations
        return broadcast_object_list([spent >= self.config.seconds])[0]

    def _hacked(self, figures: dict[str, float]) -> bool:
        """Whether the trained reward has left a watched one behind by more than the run allows."""
        limit = self.config.evaluate.early_stop
        hacked = limit is not None and figures.get("eval/gap", 0.0) > limit
        if hacked:
            self._say(f"stopped early: the trained reward has risen by {figures['eval/gap']:.2f} stds more than a watched one")
        return hacked

    def _iteration(self, n: int) -> dict[str, float]:
        """P prompts on all ranks, p of them here; G samples each."""
        method = self.config.method
        self.phases.clear()
        got = self.collector(n)
        tree, cond = got.tree, got.cond
        with self.phases("update"):
            draws = [generator(self.config.seed, DRAW, n, slot) for slot in self.collector.slots]
            weights = torch.tensor(list(self.config.reward.train.values()))
            adv = combine(partial(method.credit, tree), got.rewards, got.pool, weights, self.config.reward.aggregate)
            updates = method.updates(tree, adv, draws, n)
            try:
                health = [self.learner.step(decisions, cond) for decisions in updates]
            except NotFinite as error:
                raise self._diverged(error) from error
        return self._figures(got.pool, tree, updates, health)

    def _diverged(self, error: NotFinite) -> TrainingError:
        """Keep the weights before it, and say where."""
        where = self.learner.save(self.run_dir / "failed", self.learner.updates)
        return TrainingError(
            f"{error}; weights before it are in {where}. A smaller optimizer.lr or method.temperature=dim often helps; the run "
            f"goes on from its last checkpoint with: {files.resume_command(self.run_dir)}"
        )

    # ---------------------------------------------------------------- what is seen of it

    def _figures(self, rewards: Tensor, tree: Tree, updates: list[Decisions], health: list[dict]) -> dict[str, float]:
        """One line of metrics.jsonl, from rewards [M, P, G] of all ranks, what was computed, and the updates' health."""
        group, groups, trained = self.config.method.group_size, len(self.collector.slots), sum(map(len, updates))
        costs = {
            "nfe_old": tree.evaluations / group,
            "nfe_nominal": tree.nominal_evaluations / group,
            "nfe_theta": trained / (group * groups),
            "lr": self.learner.lr,
        }
        flops = self.estimate.flops(groups * tree.evaluations, groups * group, trained)
        times = phase_figures(self.phases, flops, self.rate)
        asked = {  # of rewards on a server, since the run began here: requests, retries, and faults by kind
            f"scorer/{name}/{kind}": count
            for name, reward in self.panel.rewards.items()
            for kind, count in getattr(reward, "counts", {}).items()
        }
        return reward_figures(self.panel.rewards, rewards) | health_figures(health) | costs | times | asked

    def _evaluate(self, iteration: int) -> dict[str, float]:
        """Rewards, watched rewards and metrics of the averaged weights on held-out prompts and fixed seeds."""
        e, began = self.config.evaluate, time.perf_counter()
        with self.learner.averaged():
            figures, images, failures = self.held()
        gap = reward_gap(self.base or figures, figures, self.config.reward.train, self.config.watched)
        figures |= ({} if gap is None else {"eval/gap": gap}) | {"time/evaluate": time.perf_counter() - began}
        if self.main:
            shown = images[: e.gallery, :4]
            report.save_samples(self.run_dir / "samples", iteration, shown, [prompt.text for prompt in self.held_out])
            for name, found in failures.items():
                files.record_failures(self.run_dir, iteration, name, found)
            self._say(f"iteration {iteration}: " + ", ".join(f"{k} {v:.4g}" for k, v in figures.items()))
        self._keep_best(iteration, figures)
        self.accelerator.wait_for_everyone()
        return figures

    def _keep_best(self, iteration: int, figures: dict[str, float]) -> None:
        name, sign = (self.best or "").removeprefix("-"), -1 if (self.best or "").startswith("-") else 1
        if f"eval/{name}" in figures:
            self.learner.keep_best(self.run_dir / "best", iteration, self.best, sign * figures[f"eval/{name}"])

    @contextmanager
    def _resumable(self) -> Iterator[None]:
        """What ends a run from outside of it, a reward or the memory, ends it with a word on how to go on."""
        try:
            yield
        except RewardError as error:
            self._save(self.done)  # nothing of the iteration at hand has been learned yet
            raise TrainingError(f"{error}; mend it and go on with: {files.resume_command(self.run_dir)}") from error
        except torch.OutOfMemoryError as error:
            reason = str(error).split(". ")[0]
            raise TrainingError(
                f"the device's memory ran out after {self.done} iterations ({reason}): set batch.rollout, batch.update or "
                f"batch.decode lower in {self.run_dir / 'config.yaml'} (neighbor-grpo plan says what would fit) and go on "
                f"with: {files.resume_command(self.run_dir)}"
            ) from error

    def _plan_lines(self) -> list[str]:
        return self.plan.lines(self.config, self.accelerator.num_processes, self.estimate, self.rate)

    # ---------------------------------------------------------------- what stays of it

    def _save(self, iteration: int) -> None:
        try:
            self.learner.check_ranks()
        except RanksDiffer as error:  # nothing is saved over the last checkpoint, which was the same on all
            raise TrainingError(
                f"{error}: the run cannot be trusted from there on; a rank's hardware or a collective failed. "
                f"Go on from the last checkpoint with: {files.resume_command(self.run_dir)}"
            ) from error
        self.learner.save(self.run_dir / "checkpoints", iteration)

    def _record(self, figures: dict) -> None:
        if self.main:
            files.record(self.run_dir, figures)

    def _finish(self) -> None:
        """Export the averaged weights and write the page."""
        self.learner.export(self.run_dir)
        if self.main:
            report.write(self.run_dir)
            self._say(f"done: {self.run_dir / 'report.html'}")
        self.accelerator.wait_for_everyone()

    # ---------------------------------------------------------------- ranks and signals

    @property
    def main(self) -> bool:
        return self.accelerator.is_main_process

    def _say(self, text: str) -> None:
        if self.main:
            print(text, flush=True)

    def _any_rank(self, value):
        """The first value that is not None on any rank, on every rank."""
        return next((v for v in gather_object([value]) if v is not None), None)
