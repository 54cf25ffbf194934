"""What a run of a configuration takes on each device, before any weights are loaded: bytes by phase, FLOPs by row.

The model's skeleton does the work of each phase on the meta device, with the method's own rollout and loss.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from neighbor_grpo.config import Config, Model
from neighbor_grpo.methods import Method
from neighbor_grpo.methods.tree import Decisions
from neighbor_grpo.models.lora import lora_off, make_trainable
from neighbor_grpo.models.meta_model import META, skeleton
from neighbor_grpo.models.quantization import fp8_products
from neighbor_grpo.models.registry import pick_dtype, take
from neighbor_grpo.models.text_cache import TOGETHER
from neighbor_grpo.planning.footprint import BLOCK, Followed, Kernels, nbytes

QUANTIZED = {"nf4": 0.5 + 4 / 64, "int8": 1.0, "fp8": 1.0}  # bytes of a weight; nf4 has an fp32 scale for every 64
MOMENTS = {"adamw": 8.0, "adamw_8bit": 2 + 8 / 256}  # bytes of the optimizer's for a weight
LATER = {"quantize", "attention", "gradient_checkpointing", "compile", "fp8_rollout"}  # what leaves a skeleton as it is


@dataclass(frozen=True)
class Estimate:
    """Of one process.  Encoders and VAE are on a GPU only while they are in use; in a computer's own memory, always."""

    parameters: int
    trained: int
    latent: int  # numbers in one x
    resident: dict[str, float]  # bytes by what they hold, throughout
    phases: dict[str, dict[str, float]]  # bytes on top of them in each phase
    rows: dict[str, int]  # that each phase takes at once
    forward: float  # FLOPs of a row of the rollout
    update: float  # FLOPs of a row of a forward-backward
    decode: float  # FLOPs of a picture

    def flops(self, forwards: float, pictures: float, forward_backwards: float) -> dict[str, float]:
        """By phase, of so many rows each."""
        return {
            "rollout": forwards * self.forward,
            "decode": pictures * self.decode,
            "update": forward_backwards * self.update,
        }

    def bytes(self, phase: str) -> float:
        return sum(self.resident.values()) + sum(self.phases[phase].values())

    @property
    def deciding(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=self.bytes)

    @property
    def peak(self) -> float:
        return self.bytes(self.deciding)


def estimate(config: Config, device: str, processes: int = 1, sharded: bool = False) -> Estimate:
    """For devices of a type.  sharded: FSDP2 divides weights, gradients and optimizer; what a rank gathers of the others'
    for a moment is not counted.  Raises UserError where the model is none or the LoRA fits no layer."""
    method, batch, m = config.method, config.batch, config.model
    trial, shards = _trial(m.model_dump_json(exclude=LATER), device), processes if sharded else 1
    groups = config.prompts.per_iteration // processes
    together = min(groups, max(1, batch.rollout // method.group_size))  # groups that roll out side by side
    rows, group = together * method.group_size, _group(trial, method)
    others = (groups - together) * group.kept  # rolled out before
    before, grown = others + together * group.before, others + together * group.grown
    kept = tree = groups * group.kept
    if together < groups:  # in the end the parts are put side by side, where nothing is shared any more
        tree, grown = groups * group.apart, max(grown, groups * (group.kept + group.apart))
    learned = groups * len(group.first)
    piece, several = group.rows(min(batch.update, learned)), learned > batch.update or sharded
    taken = {"rollout": min(batch.rollout, rows), "decode": min(batch.decode, rows), "update": len(piece)}
    packed = m.quantize if m.quantize != "nf4" else None
    forward = trial.forward(taken["rollout"], m.fp8_rollout, packed)
    update = trial.update(method, piece, m.gradient_checkpointing, packed, several)
    decode = trial.decode(taken["decode"])

    weights = 4 * trial.trained / shards
    gathered = 4 * trial.trained if learned > batch.update else weights  # FSDP2 divides them in a step's last backward
    at_once = weights if device == "cuda" and config.optimizer.name == "adamw" else 0  # it works on all weights side by side
    choices = groups * group.choices
    unpacked = trial.largest if m.quantize == "nf4" else 0  # a layer's weights while they multiply
    cond = nbytes(part for part in trial.model.blank(1) if part.is_floating_point())
    if batch.keep_on == "cpu" and device == "cuda":  # a batch at a time is on the device
        before = grown = 8 * trial.latent * rows
        kept, tree, choices = 0, 0, 4 * trial.latent * len(piece) * (2 + piece.y.shape[1])
    resident = {
        "transformer": trial.transformer(m.quantize) / shards,
        "LoRA": trial.adapter / shards,
        "optimizer": MOMENTS[config.optimizer.name] / 4 * weights,
        "average": weights if config.ema else 0,
    }
    phases = {
        "encode": trial.encode(),
        "rollout": max(
            {"states": before, "conditioning": cond * (groups + rows), "activations": forward.peak + unpacked},
            {"states": grown, "conditioning": cond * (groups + rows)},
            key=lambda parts: sum(parts.values()),
        ),
        "decode": {"VAE": trial.vae, "states": kept, "activations": decode.peak},
        "update": {
            "states": tree,
            "choices": choices,
            "gradients": gathered if several else 0,
            "activations": update.peak + unpacked,
        },
        "step": {"states": tree, "choices": choices, "gradients": weights, "the optimizer's work": at_once},
    }
    if device != "cuda":
        resident |= {"VAE": trial.vae, "encoders": sum(nbytes(encoder.parameters()) for encoder in trial.encoders.values())}
        for visitor in ("VAE", "encoder"):
            for parts in phases.values():
                parts.pop(visitor, None)
    return Estimate(
        trial.parameters,
        trial.trained,
        trial.latent,
        _some(resident),
        {phase: _some(held) for phase, held in phases.items()},
        taken,
        forward.flops / taken["rollout"],
        update.flops / taken["update"],
        decode.flops / taken["decode"],
    )


class Trial:
    """A model without weights, as it is trained.  What a piece of work takes is found out once."""

    def __init__(self, settings: Model, device: str) -> None:
        self.device, self.done, dtype = device, {}, pick_dtype(settings.dtype, torch.device(device))
        self.model = skeleton(settings.path, dtype, **settings.drawing())
        pipe, transformer, lora = self.model.pipe, self.model.transformer, settings.lora
        self.shape = self.model.noise(1, torch.Generator())[0].shape
        self.latent, self.vae = self.shape.numel(), nbytes(pipe.vae.parameters())
        encoders = {name: getattr(pipe, name) for name in self.model.encoders}
        self.encoders = {name: encoder for name, encoder in encoders.items() if encoder is not None}
        linear = [layer.weight for layer in transformer.modules() if type(layer) is nn.Linear]
        self.linear, self.largest = sum(weight.numel() for weight in linear), max(weight.nbytes for weight in linear)
        make_trainable(self.model, lora)
        self.weights = [weight for weight in transformer.parameters() if weight.requires_grad]
        self.adapter = nbytes(self.weights) if lora else 0
        self.bytes = nbytes((*transformer.parameters(), *transformer.buffers())) - self.adapter
        self.trained = sum(weight.numel() for weight in self.weights)
        self.parameters = sum(weight.numel() for weight in transformer.parameters())
        self.lower, self.block = dtype if self.model.autocast else None, BLOCK if device == "cuda" else 1

    def transformer(self, quantize: str | None) -> float:
        """Bytes of its weights without the LoRA's."""
        itemsize = self.model.dtype.itemsize
        return self.bytes + (self.linear * (QUANTIZED[quantize] - itemsize) if quantize else 0)

    def forward(self, rows: int, fp8: bool, packed: str | None) -> Followed:
        model, (x, cond) = self.model, self._rows(rows)

        def work() -> None:
            with torch.no_grad(), fp8_products(model.transformer) if fp8 else nullcontext():
                model.velocity(x, 0.5, cond)

        return self._once(("forward", rows, fp8, packed), model.transformer, work, packed)

    def update(self, method: Method, rows: Decisions, checkpointing: bool, packed: str | None, several: bool) -> Followed:
        """several: there are gradients to add to."""
        model, cond = self.model, self.model.blank(1)

        def work() -> None:  # as update.accumulate does
            here, v_ref = take(cond, torch.zeros(len(rows), dtype=torch.long)), None
            if method.kl:
                with torch.no_grad(), lora_off(model.transformer):
                    v_ref = model.velocity(rows.x, rows.t, here)
            loss, _ = method.loss(model.velocity(rows.x, rows.t, here), rows, v_ref)
            torch.autograd.backward(loss.sum())

        for weight in self.weights:
            weight.grad = torch.empty_like(weight) if several else None
        key = "update", repr(method), rows.y.shape, checkpointing, packed, several
        seen = self._once(key, model.transformer, work, packed, checkpointing)
        for weight in self.weights:
            weight.grad = None
        return seen

    def decode(self, rows: int) -> Followed:
        model, (x, _) = self.model, self._rows(rows)

        def work() -> None:
            with torch.no_grad():
                (model.to_image(x).float() / 2 + 0.5).clamp(0, 1)

        return self._once(("decode", rows), model.vae, work)

    def encode(self) -> dict[str, float]:
        """Bytes of the encoder that needs most: of text, or the VAE for a picture to start from."""
        needed = [{"VAE": self.vae, "activations": self._see().peak}] if self.model.starts_from_image else []
        for name, encoder in self.encoders.items():
            needed.append({"encoder": nbytes(encoder.parameters())})
            if encoder.main_input_name == "input_ids":
                needed[-1]["activations"] = self._read(name, encoder).peak
        return max(needed, key=lambda parts: sum(parts.values()), default={})

    def _read(self, name: str, encoder: nn.Module) -> Followed:
        """Prompts as long as can be; T5 gives its last layer, other encoders all, of which the pipelines choose."""
        config = encoder.config.get_text_config()
        length = min(self.model.max_sequence_length, getattr(config, "max_position_embeddings", self.model.max_sequence_length))
        tokens = torch.zeros(TOGETHER, length, dtype=torch.long, device=META)

        def work() -> None:
            with torch.no_grad():
                encoder(input_ids=tokens, output_hidden_states="t5" not in config.model_type)

        return self._once(("encode", name), encoder, work)

    def _see(self) -> Followed:
        """A film of a picture; Wan 2.2 TI2V-5B is content with the picture."""
        vae = self.model.vae
        film = torch.empty(1, 3, self.model.frames, self.model.height, self.model.width, device=META, dtype=vae.dtype)

        def work() -> None:
            with torch.no_grad():
                vae.encode(film)

        return self._once(("see",), vae, work)

    def _rows(self, rows: int) -> tuple:
        return torch.empty(rows, *self.shape, device=META), self.model.blank(rows)

    def _once(
        self, key: tuple, module: nn.Module, work: Callable[[], None], packed: str | None = None, checkpointing: bool = False
    ) -> Followed:
        if key not in self.done:
            kernels = Kernels(self.device, self.lower if module is self.model.transformer else None, packed)
            with kernels.of(module, checkpointing), Followed(self.block) as self.done[key]:
                work()
        return self.done[key]


@lru_cache(maxsize=8)
def _trial(settings: str, device: str) -> Trial:
    return Trial(Model.model_validate_json(settings), device)


@dataclass(frozen=True)
class Group:
    """Bytes of one group's states, and its first update."""

    before: int  # when the last velocity is computed
    grown: int  # at most, while the rollout makes them
    kept: int  # after it
    apart: int  # if no two states shared any
    choices: int  # bytes of all updates
    first: Decisions

    def rows(self, n: int) -> Decisions:
        """So many of a first update of several groups."""
        fields = (getattr(self.first, name) for name in self.first.__dataclass_fields__)
        return Decisions(*(torch.zeros(n, *field.shape[1:], dtype=field.dtype, device=field.device) for field in fields))


def _group(trial: Trial, method: Method) -> Group:
    def noise(n: int) -> Tensor:
        return torch.empty(1, n, *trial.shape, device=META)

    def velocity(x: Tensor, t: float) -> Tensor:
        nonlocal before
        before = max(before, seen.held)
        return torch.cat([torch.empty_like(x)])  # as sampling.batched_velocity does

    before, rewards = 0, torch.randn(1, method.group_size, generator=torch.Generator().manual_seed(0))
    with Followed(trial.block) as seen:
        tree = method.rollout(velocity, noise, trial.model.times(method.num_steps), 0)
        grown, kept = seen.peak, seen.held
        updates = method.updates(tree, method.credit(tree, rewards, rewards), torch.Generator(), 0)
        choices = seen.held - kept
    apart = tree.root.nbytes + sum(step.x.nbytes + step.v.nbytes + step.y.nbytes for step in tree.steps)
    return Group(before, grown, kept, apart, choices, updates[0])


def _some(held: dict[str, float]) -> dict[str, float]:
    return {name: size for name, size in held.items() if size}
