"""Which changes of a configuration make it fit a device's memory."""

from collections.abc import Iterator
from dataclasses import dataclass

from neighbor_grpo.config import Config, configured, override
from neighbor_grpo.errors import UserError
from neighbor_grpo.planning.estimate import Estimate, estimate
from neighbor_grpo.planning.units import quantity

SPARED = 0.05  # share of a device that advice leaves to its context, to libraries' workspaces and to fragmentation


@dataclass(frozen=True)
class Fit:
    """Hold changes of a configuration (key -> value), the configuration with them, and its estimate."""

    changes: dict[str, str]
    config: Config
    estimate: Estimate

    @property
    def overrides(self) -> str:
        """Return the changes as they are typed on the command line."""
        return " ".join(f"{key}={value}" for key, value in self.changes.items())


@dataclass(frozen=True)
class Place:
    """Describe where a run shall fit: the type of its devices, their bytes, the processes, whether FSDP2 divides."""

    device: str
    limit: float
    processes: int = 1
    sharded: bool = False

    def tried(self, config: Config, changes: dict[str, str]) -> Fit:
        """Return the configuration with these changes and its estimate."""
        overrides = [f"{key}={value}" for key, value in changes.items()]
        changed = configured(override(config.model_dump(mode="json"), overrides))
        return Fit(changes, changed, estimate(changed, self.device, self.processes, self.sharded))


def refuse(config: Config, estimated: Estimate, device: str, limit: float, processes: int = 1, sharded: bool = False) -> None:
    """Raise UserError, which says what to change, if an estimate exceeds a device of `limit` bytes."""
    if estimated.peak <= limit:
        return
    found = fit(config, Place(device, (1 - SPARED) * limit, processes, sharded))
    if found.estimate.peak <= limit:
        remedy = f"it fits ({quantity(found.estimate.peak, 'B')}) with {found.overrides}"
    else:
        missing = quantity(found.estimate.peak - limit, "B")
        remedy = f"{missing} too much even with {found.overrides or 'all that could be changed'}"
    raise UserError(
        f"does not fit: the {estimated.deciding} needs {quantity(estimated.peak, 'B')} of {quantity(limit, 'B')}, "
        f"{quantity(estimated.peak - limit, 'B')} too much; {remedy}"
    )


def fit(config: Config, place: Place) -> Fit:
    """Return the changes, cheap ones first, with which the estimate fits; or all changes that help.

    Shrink the phase with the highest peak until all phases fit; then undo what proved unnecessary.
    """
    now = place.tried(config, {})
    while now.estimate.peak > place.limit:
        steps = (place.tried(config, now.changes | change) for change in _changes(now, place))
        phase = now.estimate.deciding
        better = next((step for step in steps if step.estimate.bytes(phase) < now.estimate.peak), None)
        if better is None:
            return now
        now = better
    return _more_rows(config, _fewer_changes(config, now, place), place)


def _fewer_changes(config: Config, now: Fit, place: Place) -> Fit:
    """Undo changes that are not needed, the latest first."""
    for key in reversed(list(now.changes)):
        less = place.tried(config, {other: value for other, value in now.changes.items() if other != key})
        now = less if less.estimate.peak <= place.limit else now
    return now


def _more_rows(config: Config, now: Fit, place: Place) -> Fit:
    """Raise batches that were made smaller, where later changes left room."""
    for phase in now.estimate.rows:
        key = f"batch.{phase}"
        if key in now.changes and "activations" in now.estimate.phases[phase]:
            rows = min(getattr(config.batch, phase), _rows(now.estimate, phase, place.limit))
            more = place.tried(config, now.changes | {key: str(rows)})
            now = more if more.estimate.peak <= place.limit else now
            now = place.tried(config, now.changes | {key: str(now.estimate.rows[phase])})
    return now


def _changes(now: Fit, place: Place) -> Iterator[dict[str, str]]:
    """Give the changes that could shrink the phase with the highest peak, the cheapest first."""
    phase, c, e = now.estimate.deciding, now.config, now.estimate
    cuda, eight_bits = place.device == "cuda", not place.sharded  # FSDP2 divides nothing in 8 bits
    smaller = "activations" in e.phases[phase] and e.rows.get(phase, 1) > 1
    whole = bool(c.model.lora) and not e.frozen
    rows = str(min(e.rows[phase] - 1, _rows(e, phase, place.limit))) if smaller else ""
    table = [
        (smaller, f"batch.{phase}", rows),
        (phase == "update" and not c.model.gradient_checkpointing, "model.gradient_checkpointing", "true"),
        (cuda and c.batch.keep_on == "device", "batch.keep_on", "cpu"),
        (cuda and eight_bits and c.optimizer.name == "adamw", "optimizer.name", "adamw_8bit"),
        (phase == "decode" and not c.model.vae_tiling, "model.vae_tiling", "true"),
        (c.model.fp8_rollout, "model.fp8_rollout", "false"),
        (not c.model.lora, "model.lora.rank", "16"),
        (whole and eight_bits and c.model.quantize is None, "model.quantize", "int8"),
        (whole and eight_bits and cuda, "model.quantize", "nf4"),
    ]
    yield from ({key: value} for applies, key, value in table if applies)


def _rows(estimated: Estimate, phase: str, limit: float) -> int:
    """Return how many rows a phase has room for, if its activations are in proportion to them."""
    activations = estimated.phases[phase]["activations"]
    return max(1, int(estimated.rows[phase] * (limit - estimated.bytes(phase) + activations) / activations))
