"""What a run takes on each device, before any weights are loaded: bytes by phase, FLOPs by row.

A model on the meta device does the work of each phase, with the method's own rollout and loss (planning.trial).
"""

from dataclasses import dataclass, fields

from neighbor_grpo.config import Config
from neighbor_grpo.errors import UserError
from neighbor_grpo.methods.rows import Rows
from neighbor_grpo.planning.footprint import nbytes
from neighbor_grpo.planning.trial import Drafts, Group, Trial, drafts_of, group_of, trial_of

MOMENTS = {"adamw": 8.0, "adamw_8bit": 2 + 8 / 256}  # bytes of the optimizer's for a weight


@dataclass(frozen=True)
class Estimate:
    """Hold the bytes and FLOPs of one process.

    Encoders and VAE are on a GPU only while they are in use; in a computer's own memory they are always.
    """

    parameters: int
    trained: int
    latent: int  # scalars in one x, D
    resident: dict[str, float]  # bytes by what they hold, throughout
    phases: dict[str, dict[str, float]]  # bytes on top of them in each phase
    rows: dict[str, int]  # of the model's batch in each phase; a trained row of several states counts as many
    forward: float  # FLOPs of a row of the rollout
    update: float  # FLOPs of the loss and gradient of a row
    decode: float  # FLOPs of a picture
    shift: float | None  # of the rollout's times
    frozen: str | None  # how the transformer's weights are stored, where they cannot be trained

    def flops(self, forwards: float, pictures: float, rows: float) -> dict[str, float]:
        """Return the FLOPs of each phase for so many forwards, pictures, and rows trained."""
        return {
            "rollout": forwards * self.forward,
            "decode": pictures * self.decode,
            "update": rows * self.update,
        }

    def bytes(self, phase: str) -> float:
        """Return the bytes in use during a phase."""
        return sum(self.resident.values()) + sum(self.phases[phase].values())

    @property
    def deciding(self) -> str:
        """Return the phase that needs most."""
        return max(self.phases, key=self.bytes)

    @property
    def peak(self) -> float:
        """Return the bytes of the phase that needs most."""
        return self.bytes(self.deciding)


def estimate(config: Config, device: str, processes: int = 1, sharded: bool = False) -> Estimate:
    """Estimate a run on devices of a type.

    sharded: FSDP2 divides weights, gradients and optimizer; its temporary all-gathers are left out.  Raises UserError where
    there is no model or the LoRA fits no layer.
    """
    e = _Estimator(config, device, processes, sharded)
    phases = {
        "encode": e.trial.encode(), "rollout": e.rollout(), "decode": e.decode(), "update": e.update(), "step": e.step(),
    }  # fmt: skip
    resident = e.resident()
    if device != "cuda":  # encoders and VAE stay where they are
        resident |= {"VAE": e.trial.vae, "encoders": sum(nbytes(part.parameters()) for part in e.trial.encoders.values())}
        phases = {
            name: {what: size for what, size in parts.items() if what not in ("VAE", "encoder")}
            for name, parts in phases.items()
        }
    return Estimate(
        e.trial.parameters,
        e.trial.trained,
        e.trial.latent,
        _some(resident),
        {name: _some(parts) for name, parts in phases.items()},
        e.taken,
        e.forward.flops / e.taken["rollout"],
        e.backward.flops / len(e.part),
        e.decoding.flops / e.taken["decode"],
        e.trial.model.shift(config.method.num_steps),
        e.trial.model.frozen.what if e.trial.model.frozen else None,
    )


class _Estimator:
    """Compute the bytes of each phase from trials of its work."""

    def __init__(self, config: Config, device: str, processes: int, sharded: bool) -> None:
        method, batch, m = config.method, config.batch, config.model
        self.config, self.device = config, device
        trial: Trial = trial_of(m, device)
        group: Group = group_of(trial, method)
        self.drafts: Drafts | None = drafts_of(trial, method, config.scouts) if config.scouts else None
        self.trial, self.group, self.shards = trial, group, processes if sharded else 1
        self.groups = config.prompts.per_iteration // processes
        self.together = min(self.groups, max(1, batch.rollout // method.group_size))  # groups that roll out side by side
        self.rows = self.together * max(method.group_size, config.scouts.count if config.scouts else 0)
        self.learned = self.groups * len(group.first)
        self.part: Rows = group.rows(min(max(1, batch.update // group.first.states), self.learned))  # a micro-batch
        self.several = self.learned > len(self.part) or sharded
        self.taken = {
            "rollout": min(batch.rollout, self.rows),
            "decode": min(batch.decode, self.rows),
            "update": len(self.part) * self.part.states,
        }
        stored = m.quantize or trial.packed  # how the frozen weights are kept
        if trial.packed and config.scouts and config.scouts.fp8:
            raise UserError(f"the transformer is stored as {trial.packed} already: leave out scouts.fp8")
        self.packed = packed = stored if stored != "nf4" else None
        self.forward = trial.forward(self.taken["rollout"], m.fp8_rollout, packed)
        self.backward = trial.update(method, self.part, m.gradient_checkpointing, packed, self.several)
        self.decoding = trial.decode(self.taken["decode"])
        self.evaluation = self._evaluation()
        self.weights = 4 * trial.trained / self.shards
        self.unpacked = trial.largest if stored == "nf4" else 0  # a layer's weights while they multiply
        self.keep_on_cpu = batch.keep_on == "cpu" and device == "cuda"  # then a batch at a time is on the device

    def _evaluation(self) -> Trial | None:
        """Return the trial of the evaluations, if their settings are others.  Raises UserError for those it cannot have."""
        config, changes = self.config, self.config.evaluate.model_changes()
        trial = trial_of(config.model.model_copy(update=changes), self.device) if changes else None
        (trial or self.trial).model.times(config.evaluate.num_steps or config.method.num_steps)
        return trial

    def resident(self) -> dict[str, float]:
        """Return what is there throughout."""
        c, shards = self.config, self.shards
        return {
            "transformer": self.trial.transformer(c.model.quantize) / shards,
            "LoRA": self.trial.adapter / shards,
            "optimizer": MOMENTS[c.optimizer.name] / 4 * self.weights,
            "average": self.weights if c.ema else 0,
            "lagging copies": self.weights * len(c.copies),
        }

    def rollout(self) -> dict[str, float]:
        """Return the larger of two moments: the last forward, and the moment when most states are there."""
        group, together = self.group, self.together
        before = (self.groups - together) * group.kept  # groups that were rolled out before
        last, most = before + together * group.before, before + together * group.most
        if together < self.groups:  # in the end the parts are copied side by side, and nothing is shared any more
            most = max(most, self.groups * (group.kept + group.unshared))
        if drafts := self.drafts:  # whose states are gone when some of them are rolled out in full
            last = max(before + together * drafts.before, last + together * drafts.noise)
            most = max(before + together * drafts.most, most + together * drafts.noise)
        if self.keep_on_cpu:
            last = most = 8 * self.trial.latent * self.rows
        cond = nbytes(part for part in self.trial.model.blank(1) if part.is_floating_point()) * (self.groups + self.rows)
        moments: list[dict[str, float]] = [
            {"states": last, "conditioning": cond, "activations": self.forward.peak + self.unpacked},
            {"states": most, "conditioning": cond},
        ]
        if trial := self.evaluation:
            e, batch = self.config.evaluate, self.config.batch.rollout
            rows = min(e.prompts, max(1, batch // e.seeds)) * e.seeds  # drawn side by side
            activations = trial.forward(min(rows, batch), False, self.packed).peak
            moments.append({"states": 8 * trial.latent * rows, "activations": activations + self.unpacked})
        return max(moments, key=lambda parts: sum(parts.values()))

    def decode(self) -> dict[str, float]:
        """Return the VAE, its activations, and the states that wait."""
        kept = 0 if self.keep_on_cpu else self.groups * self.group.kept
        rows = self.taken["decode"]
        evaluated = self.evaluation.decode(rows).peak if self.evaluation else 0
        return {"VAE": self.trial.vae, "states": kept, "activations": max(self.decoding.peak, evaluated)}

    def update(self) -> dict[str, float]:
        """Return the larger of two moments: the rows are made from the states, or a forward-backward, without the states."""
        # FSDP2 divides gradients in a step's last backward
        gathered = 4 * self.trial.trained if self.learned > len(self.part) else self.weights
        shared = self.together == self.groups
        states = 0 if self.keep_on_cpu else self.groups * (self.group.kept if shared else self.group.unshared)
        moments: list[dict[str, float]] = [
            {"states": states, "choices": self._choices()},
            {
                "choices": self._choices(),
                "gradients": gathered if self.several else 0,
                "activations": self.backward.peak + self.unpacked,
            },
        ]
        return max(moments, key=lambda parts: sum(parts.values()))

    def step(self) -> dict[str, float]:
        """Return rows, gradients and what the optimizer computes."""
        foreach = self.device == "cuda" and self.config.optimizer.name == "adamw"  # works on all weights side by side
        work = self.weights if foreach else 0
        return {"choices": self._choices(), "gradients": self.weights, "the optimizer's work": work}

    def _choices(self) -> float:
        """Return the rows of the iteration, or of a micro-batch where they wait on the CPU."""
        if self.keep_on_cpu:
            columns = (getattr(self.part, field.name) for field in fields(self.part))
            return sum(column.nbytes for column in columns if column.ndim > 2)
        return self.groups * self.group.choices


def _some(parts: dict[str, float]) -> dict[str, float]:
    return {name: size for name, size in parts.items() if size}
