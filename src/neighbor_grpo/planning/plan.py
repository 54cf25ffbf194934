"""What a configuration takes, before a model is loaded: counts, memory and time of an iteration."""

from collections.abc import Mapping
from dataclasses import dataclass

from neighbor_grpo.config import Config, method_name, settings_lines
from neighbor_grpo.methods.scouts import check_scouts
from neighbor_grpo.planning.estimate import Estimate
from neighbor_grpo.planning.units import duration, quantity
from neighbor_grpo.planning.work import work_of

LOOKED_AT = 100  # iterations of a run that are tried, spread over it
EFFICIENCY = 0.5  # share of the rate of large matrix products that a run is taken to reach


@dataclass(frozen=True)
class Plan:
    """Hold means over the run's iterations, of all ranks.  A forward is one row through the model."""

    samples: int  # pictures per iteration that are trained on
    drafts: float  # pictures per iteration that are scored and let go
    forwards: float  # of the rollouts
    nominal: float  # the same as papers count them, nothing shared
    rows: float  # that are trained on
    forward_backwards: float
    frozen: float  # forwards of reference and lagging copies
    updates: float  # optimizer steps

    @property
    def nfe_old(self) -> float:
        """Return the forwards per sample."""
        return self.forwards / self.samples

    @property
    def nfe_theta(self) -> float:
        """Return the forward-backwards per sample."""
        return self.forward_backwards / self.samples

    @property
    def evaluations(self) -> float:
        """Return the cost of an iteration in forwards; a forward-backward counts as three."""
        return self.forwards + 3 * self.forward_backwards + self.frozen

    def seconds(self, estimated: Estimate, processes: int, rate: float) -> dict[str, float]:
        """Return the seconds of an iteration's phases, on processes that each multiply matrices at `rate` FLOP/s."""
        flops = estimated.flops(self.forwards, self.samples + self.drafts, self.rows)
        return {phase: work / processes / (EFFICIENCY * rate) for phase, work in flops.items()}

    def lines(self, config: Config, processes: int, estimated: Estimate, rate: float | None = None) -> list[str]:
        """Return the plan in words.  rate: FLOP/s of matrix products on each process, None if unknown."""
        m, p = config.method, config.prompts.per_iteration
        rows = [
            f"model       {config.model.path}: {estimated.parameters:,} parameters, {estimated.trained:,} trained "
            f"({_trained(config)}{f' over {estimated.frozen}' if estimated.frozen else ''})",
            f"iteration   {p} prompts x {m.group_size} samples = {self.samples} pictures, {p // processes} groups on each "
            f"of {processes} process{'es' if processes > 1 else ''}",
            *self._drafts(config),
            f"rollout     {method_name(m)}: {self.forwards:g} forwards, NFE_old {self.nfe_old:.4g} a sample (as papers count: "
            f"{self.nominal / self.samples:.4g})",
            f"update      {self.forward_backwards:g} forward-backwards, NFE_theta {self.nfe_theta:.3g} a sample, in "
            f"{self.updates:g} optimizer steps" + (f", {self.frozen:g} forwards without gradient" if self.frozen else ""),
            f"run         {config.iterations} iterations, {config.iterations * self.samples:,} pictures, "
            f"{round(config.iterations * self.updates):,} optimizer steps, reward {', '.join(config.reward.train)}",
            f"latent      D = {estimated.latent:,}",
            f"times       {m.num_steps} transitions from 1 to 0, {_shift(estimated.shift, config.model.shift)}",
            f"memory      throughout, on each process: {_parts(estimated.resident)}",
        ]
        for phase, parts in estimated.phases.items():
            most = " (most)" if phase == estimated.deciding else ""
            rows.append(f"  {phase:10}{quantity(estimated.bytes(phase), 'B')}{most}: {_parts(parts)}")
        rows.append(
            f"compute     {quantity(estimated.forward, 'FLOP')} a forward, {quantity(estimated.update, 'FLOP')} a row trained, "
            f"{quantity(estimated.decode, 'FLOP')} a picture decoded"
        )
        if rate:
            phases = self.seconds(estimated, processes, rate)
            times, total = (f"{phase} {duration(s)}" for phase, s in phases.items()), config.iterations * sum(phases.values())
            rows.append(
                f"time        {', '.join(times)} an iteration, {duration(total)} in all, at {EFFICIENCY:.0%} of "
                f"{quantity(rate, 'FLOP')}/s"
            )
        return rows + settings_lines(config)

    def _drafts(self, config: Config) -> list[str]:
        """Return the line of the drafts, where there are any."""
        if not (scouts := config.scouts):
            return []
        return [
            f"drafts      {self.drafts:g} pictures of {scouts.steps} transitions, of which {self.samples} are rolled out in "
            "full; both count below"
        ]


def plan(config: Config) -> Plan:
    """Count the work of iterations spread over the run."""
    if config.scouts:
        check_scouts(config.method, config.scouts.count, config.scouts.steps)
    p, looked = config.prompts.per_iteration, range(0, config.iterations, -(-config.iterations // LOOKED_AT))
    works = [work_of(config, n) for n in looked]

    def mean(name: str) -> float:
        return sum(getattr(work, name) for work in works) / len(works)

    return Plan(
        samples=p * config.method.group_size,
        drafts=p * mean("drafts"),
        forwards=p * mean("forwards"),
        nominal=p * mean("nominal"),
        rows=p * mean("rows"),
        forward_backwards=p * mean("trained"),
        frozen=p * mean("frozen"),
        updates=mean("steps"),
    )


def affordable(config: Config, evaluations: float) -> int:
    """Return how many iterations cost no more than so many evaluations on all ranks; each is counted as it is."""
    spent = []
    for n in range(LOOKED_AT * 10):
        spent.append(config.prompts.per_iteration * work_of(config, n).evaluations)
        evaluations -= spent[-1]
        if evaluations < 0:
            return n
    return len(spent) + int(evaluations * len(spent) / sum(spent))


def _shift(shift: float | None, setting: float | str) -> str:
    """Word the shift of the times, and whose it is."""
    if shift is None:
        return "without a shift"
    return f"shift {shift:.4g} ({'by the rule of the pipeline' if setting == 'auto' else 'model.shift, for every size'})"


def _parts(sizes: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {quantity(size, 'B')}" for name, size in sizes.items())


def _trained(config: Config) -> str:
    """Say what is trained, and on which LoRAs."""
    lora, bases = config.model.lora, [base.path for base in config.model.base_loras]
    if lora is None:
        return "full fine-tune"
    return ", ".join(
        [f"LoRA of {lora.path}" if lora.path else f"LoRA rank {lora.rank}", *(f"on the LoRA {path}" for path in bases)]
    )
