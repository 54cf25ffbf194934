"""What a configuration comes to, before a model is loaded: counts, memory and time of an iteration, and what would fit."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from neighbor_grpo.config import Config, configured, override
from neighbor_grpo.errors import UserError
from neighbor_grpo.flow.path import shift_time
from neighbor_grpo.planning.estimate import Estimate, estimate

LOOKED_AT = 100  # iterations of a run that are tried, spread over it
EFFICIENCY = 0.5  # share of the rate of large matrix products that a run is taken to reach
SPARED = 0.05  # share of a device that advice leaves to its context, to libraries' workspaces and to fragmentation


@dataclass(frozen=True)
class Plan:
    """Means over the run's iterations, of all ranks; a forward is one row through the model."""

    samples: int  # pictures per iteration
    forwards: float  # of the rollouts
    nominal: float  # the same as papers count them, nothing shared
    forward_backwards: float
    updates: float  # optimizer steps

    @property
    def nfe_old(self) -> float:
        """Forwards per sample."""
        return self.forwards / self.samples

    @property
    def nfe_theta(self) -> float:
        """Forward-backwards per sample."""
        return self.forward_backwards / self.samples

    @property
    def evaluations(self) -> float:
        """What an iteration costs, a forward-backward counted as three forwards."""
        return self.forwards + 3 * self.forward_backwards

    def seconds(self, held: Estimate, processes: int, rate: float) -> dict[str, float]:
        """Of an iteration's phases, on processes that each multiply matrices at so many FLOP/s."""
        flops = held.flops(self.forwards, self.samples, self.forward_backwards)
        return {phase: work / processes / (EFFICIENCY * rate) for phase, work in flops.items()}

    def lines(self, config: Config, processes: int, held: Estimate, rate: float | None = None) -> list[str]:
        """The plan in words; rate: FLOP/s of matrix products on each process, None where it is not known."""
        m, p = config.method, config.prompts.per_iteration
        rows = [
            f"model       {config.model.path}: {held.parameters:,} parameters, {held.trained:,} trained "
            f"({'LoRA rank ' + str(config.model.lora.rank) if config.model.lora else 'full fine-tune'})",
            f"iteration   {p} prompts x {m.group_size} samples = {self.samples} pictures, {p // processes} groups on each "
            f"of {processes} process{'es' if processes > 1 else ''}",
            f"rollout     {m.name}: {self.forwards:g} forwards, NFE_old {self.nfe_old:.4g} a sample (as papers count: "
            f"{self.nominal / self.samples:.4g})",
            f"update      {self.forward_backwards:g} forward-backwards, NFE_theta {self.nfe_theta:.3g} a sample, in "
            f"{self.updates:g} optimizer steps",
            f"run         {config.iterations} iterations, {config.iterations * self.samples:,} pictures, "
            f"{round(config.iterations * self.updates):,} optimizer steps, reward {', '.join(config.reward.train)}",
            f"latent      D = {held.latent:,}",
            f"memory      throughout, on each process: {_parts(held.resident)}",
        ]
        for phase, parts in held.phases.items():
            most = " (most)" if phase == held.deciding else ""
            rows.append(f"  {phase:10}{_in(held.bytes(phase), 'B')}{most}: {_parts(parts)}")
        rows.append(
            f"compute     {_in(held.forward, 'FLOP')} a forward, {_in(held.update, 'FLOP')} a forward-backward, "
            f"{_in(held.decode, 'FLOP')} a picture decoded"
        )
        if rate:
            phases = self.seconds(held, processes, rate)
            rows.append(
                f"time        {', '.join(f'{phase} {_duration(s)}' for phase, s in phases.items())} an iteration, "
                f"{_duration(config.iterations * sum(phases.values()))} in all, at {EFFICIENCY:.0%} of {_in(rate, 'FLOP')}/s"
            )
        return rows


def plan(config: Config) -> Plan:
    """Counted, not calculated: one group of the method at work on latents of one number, where the velocity is zero."""
    p, looked = config.prompts.per_iteration, range(0, config.iterations, -(-config.iterations // LOOKED_AT))
    columns = zip(*(_work(config, n) for n in looked), strict=True)
    forwards, nominal, backwards, steps = (sum(column) / len(looked) for column in columns)
    return Plan(p * config.method.group_size, p * forwards, p * nominal, p * backwards, steps)


def affordable(config: Config, evaluations: float) -> int:
    """How many iterations, from the first on, cost no more than so many evaluations on all ranks; a window's place counts."""
    spent = []
    for n in range(LOOKED_AT * 10):
        forwards, _, backwards, _ = _work(config, n)
        spent.append(config.prompts.per_iteration * (forwards + 3 * backwards))
        evaluations -= spent[-1]
        if evaluations < 0:
            return n
    return len(spent) + int(evaluations * len(spent) / sum(spent))


def _work(config: Config, iteration: int) -> tuple[int, int, int, int]:
    """Of one group: forwards, as papers count them, forward-backwards, optimizer steps."""
    m, rng = config.method, torch.Generator().manual_seed(iteration)
    times = shift_time(torch.linspace(1, 0, m.num_steps + 1, dtype=torch.float64), 3.0).tolist()
    tree = m.rollout(lambda x, t: torch.zeros_like(x), lambda n: torch.randn(1, n, 1, generator=rng), times, iteration)
    rewards = torch.randn(1, m.group_size, generator=rng)
    updates = m.updates(tree, m.credit(tree, rewards, rewards), rng, iteration)
    return tree.evaluations, tree.nominal_evaluations, sum(map(len, updates)), len(updates)


# -------------------------------------------------------------------- what would fit


@dataclass(frozen=True)
class Fit:
    """Changes of a configuration, key -> value, what it is with them, and what it takes then."""

    changes: dict[str, str]
    config: Config
    held: Estimate

    @property
    def overrides(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.changes.items())


def refuse(config: Config, held: Estimate, device: str, limit: float, processes: int = 1, sharded: bool = False) -> None:
    """Raise UserError, with what to change, where an estimate is over the bytes of a device."""
    if held.peak <= limit:
        return
    found = fit(config, device, (1 - SPARED) * limit, processes, sharded)
    if found.held.peak <= limit:
        way_out = f"it fits ({_in(found.held.peak, 'B')}) with {found.overrides}"
    else:
        way_out = f"{_in(found.held.peak - limit, 'B')} too much even with {found.overrides or 'all that could be changed'}"
    raise UserError(
        f"does not fit: the {held.deciding} needs {_in(held.peak, 'B')} of {_in(limit, 'B')}, "
        f"{_in(held.peak - limit, 'B')} too much; {way_out}"
    )


def fit(config: Config, device: str, limit: float, processes: int = 1, sharded: bool = False) -> Fit:
    """The changes, cheap ones before dear ones, with which the estimate is within the limit; or all that help.

    What the phase that needs most takes is made less until none is over; then what proved unnecessary is taken back.
    """

    def tried(changes: dict[str, str]) -> Fit:
        overrides = [f"{key}={value}" for key, value in changes.items()]
        changed = configured(override(config.model_dump(mode="json"), overrides))
        return Fit(changes, changed, estimate(changed, device, processes, sharded))

    now = tried({})
    while now.held.peak > limit:
        steps = (tried(now.changes | change) for change in _changes(now, device, limit, sharded))
        better = next((step for step in steps if step.held.bytes(now.held.deciding) < now.held.peak), None)
        if better is None:
            return now
        now = better
    for key in reversed(list(now.changes)):
        less = tried({other: value for other, value in now.changes.items() if other != key})
        now = less if less.held.peak <= limit else now
    for phase in now.held.rows:  # what came after fewer rows may leave room for some of them
        if (key := f"batch.{phase}") in now.changes and "activations" in now.held.phases[phase]:
            more = tried(now.changes | {key: str(min(getattr(config.batch, phase), _rows(now.held, phase, limit)))})
            now = more if more.held.peak <= limit else now
            now = tried(now.changes | {key: str(now.held.rows[phase])})
    return now


def _changes(now: Fit, device: str, limit: float, sharded: bool) -> Iterator[dict[str, str]]:
    """What could make the phase that needs most take less, the dearest last; FSDP2 has nothing in 8 bits."""
    phase, c = now.held.deciding, now.config
    if "activations" in now.held.phases[phase] and now.held.rows.get(phase, 1) > 1:
        yield {f"batch.{phase}": str(min(now.held.rows[phase] - 1, _rows(now.held, phase, limit)))}
    if phase == "update" and not c.model.gradient_checkpointing:
        yield {"model.gradient_checkpointing": "true"}
    if device == "cuda" and c.batch.keep_on == "device":
        yield {"batch.keep_on": "cpu"}
    if device == "cuda" and c.optimizer.name == "adamw" and not sharded:
        yield {"optimizer.name": "adamw_8bit"}
    if phase == "decode" and not c.model.vae_tiling:
        yield {"model.vae_tiling": "true"}
    if c.model.fp8_rollout:
        yield {"model.fp8_rollout": "false"}
    if not c.model.lora:
        yield {"model.lora.rank": "16"}
    elif c.model.quantize is None and not sharded:
        yield {"model.quantize": "int8"}
    if c.model.lora and device == "cuda" and not sharded:
        yield {"model.quantize": "nf4"}


def _rows(held: Estimate, phase: str, limit: float) -> int:
    """How many rows a phase has room for, if its activations are in proportion to them."""
    activations = held.phases[phase]["activations"]
    return max(1, int(held.rows[phase] * (limit - held.bytes(phase) + activations) / activations))


# -------------------------------------------------------------------- in words


def _parts(held: dict[str, float]) -> str:
    return ", ".join(f"{name} {_in(size, 'B')}" for name, size in held.items())


def _in(amount: float, unit: str) -> str:
    """Three digits: 23.8 GB."""
    scales = (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6))
    prefix, size = next(((p, s) for p, s in scales if amount >= 0.9995 * s), ("k", 1e3))
    return f"{amount / size:.3g} {prefix}{unit}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
