"""What a run is made of: every part is made here, in an order in which mistakes show before anything slow begins."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from accelerate import Accelerator

from neighbor_grpo.config import Config, evaluation_prompts, training_prompts
from neighbor_grpo.errors import UserError
from neighbor_grpo.evaluate.evaluator import Evaluated, Evaluator
from neighbor_grpo.evaluate.measures import Measures, load_measures
from neighbor_grpo.files.lock import Lock
from neighbor_grpo.models.conditioning import Cond
from neighbor_grpo.models.devices import pick_device
from neighbor_grpo.models.family import Family
from neighbor_grpo.models.text_cache import TextCache, cache_directory, check_prompts
from neighbor_grpo.planning.estimate import Estimate, estimate
from neighbor_grpo.planning.fit import refuse
from neighbor_grpo.planning.machine import matrix_rate, memory_of
from neighbor_grpo.planning.plan import Plan, plan
from neighbor_grpo.prompts.prompt import Prompt
from neighbor_grpo.rewards.names import check_scorers
from neighbor_grpo.rewards.set import RewardSet, load_rewards
from neighbor_grpo.run import files
from neighbor_grpo.run.weights import load_base, own_adapters
from neighbor_grpo.training.beginning import Beginning, beginning
from neighbor_grpo.training.collector import Collector
from neighbor_grpo.training.experience import Source
from neighbor_grpo.training.learner import Learner
from neighbor_grpo.training.phases import Phases
from neighbor_grpo.training.ranks import accelerator_on, by_main, slots_of_rank
from neighbor_grpo.training.scouting import Scouting
from neighbor_grpo.training.trackers import Trackers

Known = dict[str, Evaluated]  # evaluations before training by their conditions, which runs of one process may share


@dataclass(frozen=True)
class Parts:
    """Hold the parts of a run.  A method's own `source` gets all of them."""

    run_dir: Path
    lock: Lock | None  # of the run directory, on the main rank
    beginning: Beginning
    config: Config
    accelerator: Accelerator
    slots: range  # this rank's groups in an iteration's batch
    prompts: list[Prompt]
    evaluation_prompts: list[Prompt]
    rewards: RewardSet
    best: str | None  # the measure whose best weights are kept
    plan: Plan
    estimate: Estimate
    model: Family
    rate: float  # FLOP/s of matrix products on this device
    learner: Learner
    phases: Phases
    texts: TextCache
    evaluator: Evaluator
    trackers: Trackers  # without any, on other ranks too, they do nothing

    @classmethod
    def assemble(cls, config: Config, resume: bool = False) -> Self:
        """Claim the run directory and make the parts.  Raises UserError before weights are loaded wherever possible."""
        accelerator = accelerator_on(pick_device(config.device))
        slots = slots_of_rank(config.prompts.per_iteration, accelerator)
        locks: list[Lock] = []

        def claim() -> Path:
            run, lock = files.claim(config.run_dir, resume)
            locks.append(lock)
            return run

        run_dir = by_main(accelerator, claim)
        lock = locks[0] if locks else None
        try:
            return cls._assemble(config.model_copy(update={"run_dir": str(run_dir)}), run_dir, lock, resume, accelerator, slots)
        except BaseException:
            _leave(run_dir, lock)
            raise

    @classmethod
    def _assemble(
        cls, config: Config, run_dir: Path, lock: Lock | None, resume: bool, accelerator: Accelerator, slots: range
    ) -> Self:
        device, ranks = accelerator.device, accelerator.num_processes
        prompts, evaluated = training_prompts(config.prompts), evaluation_prompts(config.prompts)
        skip, count = config.evaluate.skip, config.evaluate.prompts
        if skip >= len(evaluated):
            raise UserError(f"evaluate.skip ({skip}) leaves none of the {len(evaluated)} evaluation prompts: choose less")
        evaluated = evaluated[skip : skip + count]
        begun = by_main(accelerator, lambda: beginning(run_dir, config, prompts, evaluated, resume))
        check_scorers(config.reward.scorers, [*config.reward.train, *config.watched])
        rewards = load_rewards(list(config.reward.train), config.reward.scorers, config.reward.overlap)
        watched = load_measures(config.watched, config.reward.scorers)
        best = _best(config, next(iter(watched.rewards), None))
        own = own_adapters(config, run_dir) if resume else config
        counted, estimated = plan(config), estimate(own, device.type, ranks, accelerator.is_fsdp2)
        if not accelerator.is_fsdp2:  # whose temporary all-gathers are not in the estimate
            refuse(config, estimated, device.type, memory_of(device), ranks)
        cache = cache_directory(config.prompts.cache_dir)
        trackers = _begin_trackers(accelerator, config, run_dir, begun, resume)
        with ExitStack() as failed:
            failed.callback(trackers.abandon)
            model = load_base(own, device)
            check_prompts(model, [*prompts, *evaluated])
            texts = TextCache(model, cache, config.prompts.cache_gb)
            measures = Measures({**rewards.scorers, **watched.rewards}, watched.metrics)
            evaluator = Evaluator(model, texts, evaluated, measures, config, accelerator)
            parts = cls(
                run_dir, lock, begun, config, accelerator, slots, prompts, evaluated, rewards, best, counted, estimated, model,
                matrix_rate(device, model.dtype), Learner(model, own, accelerator), Phases(device), texts, evaluator, trackers,
            )  # fmt: skip
            failed.pop_all()
        return parts

    def leave(self) -> None:
        """Close the trackers, and give the run directory free."""
        self.trackers.finish()
        _leave(self.run_dir, self.lock)

    def warnings(self) -> list[str]:
        """Return what the user should know about the settings."""
        m, warnings = self.config.model, []
        if m.cfg != 1:
            warnings.append(f"warning: model.cfg = {m.cfg:g} doubles every forward; methods are published without it")
        packed = m.quantize or (self.model.frozen.packed if self.model.frozen else None)
        if packed in ("int8", "fp8", "gguf") and not m.gradient_checkpointing:
            warnings.append(
                f"warning: {packed} saves no memory in the update, where autograd keeps unpacked weights: set "
                "model.gradient_checkpointing=true"
            )
        return warnings

    def source(self) -> Source:
        """Return what makes the experience: the method's own source, or rollouts that are scored."""
        collector = Scouting if self.config.scouts else Collector
        return self.config.method.source(self) or collector(
            self.model, self.texts, self.prompts, self.rewards, self.slots, self.config, self.accelerator, self.phases,
            self.learner.drawing,
        )  # fmt: skip

    def conditioning(self, numbers: Sequence[int]) -> Cond:
        """Return the conditioning of prompts by their numbers, on the device."""
        return self.texts.encode([self.prompts[n] for n in numbers]).to(self.accelerator.device)


def _best(config: Config, watched: str | None) -> str | None:
    """Return the measure that decides which weights are best: evaluate.best, or the first watched reward."""
    best, measured = config.evaluate.best or watched, [*config.reward.train, *config.watched]
    if best and best.removeprefix("-") not in measured:
        raise UserError(f"evaluate.best: {best!r} is not measured: choose one of {', '.join(measured)}")
    return best


def _begin_trackers(accelerator: Accelerator, config: Config, run: Path, begun: Beginning, resume: bool) -> Trackers:
    """Begin the trackers on the main rank; where one cannot begin, all ranks stop."""
    found: list[Trackers] = []
    by_main(accelerator, lambda: found.append(Trackers.begin(config, run, resume, begun.iteration)))
    return found[0] if found else Trackers()


def _leave(run_dir: Path, lock: Lock | None) -> None:
    if lock:
        files.abandon(run_dir, lock)
