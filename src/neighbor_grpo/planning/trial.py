"""A model on the meta device that does the work of each phase, to find out its bytes and FLOPs."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from neighbor_grpo.config import Model, Scouts
from neighbor_grpo.errors import UserError
from neighbor_grpo.flow.streams import Iteration
from neighbor_grpo.methods.policy import with_gradient
from neighbor_grpo.methods.protocol import Method
from neighbor_grpo.methods.rows import Rows
from neighbor_grpo.methods.scouts import Recorded, drafting
from neighbor_grpo.methods.tree import Noise, Tree
from neighbor_grpo.models.devices import pick_dtype
from neighbor_grpo.models.frozen import Frozen
from neighbor_grpo.models.lora import make_trainable
from neighbor_grpo.models.meta_model import META, meta_model
from neighbor_grpo.models.policy import ModelPolicy
from neighbor_grpo.models.quantization import fp8_products
from neighbor_grpo.models.text_cache import ENCODE_BATCH
from neighbor_grpo.planning.footprint import BLOCK, Followed, nbytes
from neighbor_grpo.planning.kernels import Kernels

QUANTIZED = {"nf4": 0.5 + 4 / 64, "int8": 1.0, "fp8": 1.0}  # bytes of a weight; nf4 has an fp32 scale for every 64
# settings that leave the model on the meta device as it is
WITHOUT_EFFECT = {"quantize", "attention", "gradient_checkpointing", "compile", "fp8_rollout"}


def check_frozen(settings: Model, frozen: Frozen) -> None:
    """Raise UserError for settings that need weights as they are, where they are stored in fewer bits."""
    if frozen.packed and (settings.quantize or settings.fp8_rollout):
        key = f"model.quantize={settings.quantize}" if settings.quantize else "model.fp8_rollout"
        raise UserError(f"the transformer is {frozen.what} already: leave out {key}")


class Trial:
    """Run phases of a model without weights, as it is trained.  Each piece of work is run once and remembered."""

    def __init__(self, settings: Model, device: str) -> None:
        self.device, dtype = device, pick_dtype(settings.dtype, torch.device(device))
        self.done: dict[tuple, Followed] = {}
        plain = settings.model_copy(update={"quantize": None, "attention": None})
        self.model = meta_model(settings.path, dtype, **plain.model_settings())
        if self.model.frozen:
            check_frozen(settings, self.model.frozen)
        pipe, transformer, lora = self.model.pipe, self.model.transformer, settings.lora
        self.shape = self.model.noise(1, torch.Generator())[0].shape
        self.latent, self.vae = self.shape.numel(), nbytes(pipe.vae.parameters())
        encoders = {name: getattr(pipe, name) for name in self.model.encoders}
        self.encoders = {name: encoder for name, encoder in encoders.items() if encoder is not None}
        self.packed = self.model.frozen.packed if self.model.frozen else None
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
        """Return the bytes of the transformer's weights, without the LoRA's."""
        if self.packed == "gguf" and self.model.frozen and self.model.frozen.nbytes:
            return self.model.frozen.nbytes
        packed, itemsize = quantize or self.packed, self.model.dtype.itemsize
        return self.bytes + (self.linear * (QUANTIZED[packed] - itemsize) if packed in QUANTIZED else 0)

    def forward(self, rows: int, fp8: bool, packed: str | None) -> Followed:
        """Run a forward of the rollout."""
        model, (x, cond) = self.model, self._rows(rows)

        def work() -> None:
            with torch.no_grad(), fp8_products(model.transformer) if fp8 else nullcontext():
                model.velocity(x, 0.5, cond)

        return self._once(("forward", rows, fp8, packed), model.transformer, work, packed)

    def update(self, method: Method, rows: Rows, checkpointing: bool, packed: str | None, several: bool) -> Followed:
        """Run the loss of rows and its gradient.  several: there are gradients already, to add to."""
        model, copy = self.model, [weight.data for weight in self.weights]
        cond = model.blank(1).take(torch.zeros(len(rows), dtype=torch.long))

        def work() -> None:
            policy = ModelPolicy(model, cond, self.weights, dict.fromkeys(method.copies, copy), method.guided)
            loss, _ = method.loss(policy, rows)
            torch.autograd.backward(with_gradient(loss).sum())

        for weight in self.weights:
            weight.grad = torch.empty_like(weight) if several else None
        shapes = tuple(getattr(rows, field.name).shape for field in fields(rows))
        seen = self._once(
            ("update", repr(method), shapes, checkpointing, packed, several), model.transformer, work, packed, checkpointing
        )
        for weight in self.weights:
            weight.grad = None
        return seen

    def decode(self, rows: int) -> Followed:
        """Decode latents into pictures."""
        model, (x, _) = self.model, self._rows(rows)

        def work() -> None:
            with torch.no_grad():
                (model.to_image(x).float() / 2 + 0.5).clamp(0, 1)

        return self._once(("decode", rows), model.vae, work)

    def encode(self) -> dict[str, float]:
        """Return the bytes of the encoder that needs most: of text, or the VAE for a picture to start from."""
        needed: list[dict[str, float]] = []
        if self.model.source_images:
            needed.append({"VAE": self.vae, "activations": self._first_picture().peak})
        for name, encoder in self.encoders.items():
            needed.append({"encoder": nbytes(encoder.parameters())})
            if encoder.main_input_name == "input_ids":
                needed[-1]["activations"] = self._text(name, encoder).peak
        return max(needed, key=lambda parts: sum(parts.values()), default={})

    def _text(self, name: str, encoder: nn.Module) -> Followed:
        """Encode prompts of the greatest length.  T5 gives its last layer, other encoders all layers."""
        whole: Any = encoder.config
        config = whole.get_text_config()
        length = min(self.model.max_sequence_length, getattr(config, "max_position_embeddings", self.model.max_sequence_length))
        tokens = torch.zeros(ENCODE_BATCH, length, dtype=torch.long, device=META)

        def work() -> None:
            with torch.no_grad():
                encoder(input_ids=tokens, output_hidden_states="t5" not in config.model_type)

        return self._once(("encode", name), encoder, work)

    def _first_picture(self) -> Followed:
        """Encode a video that starts from a picture (Wan 2.2 TI2V-5B encodes the picture alone, which is less)."""
        vae, frames = self.model.vae, self.model.frames or 1
        video = torch.empty(1, 3, frames, self.model.height, self.model.width, device=META, dtype=vae.dtype)

        def work() -> None:
            with torch.no_grad():
                vae.encode(video)

        return self._once(("first picture",), vae, work)

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


_trials: dict[tuple[str, str], Trial] = {}


def trial_of(settings: Model, device: str) -> Trial:
    """Return the trial of a model, made once for all settings that it does not depend on."""
    key = settings.model_dump_json(exclude=WITHOUT_EFFECT), device
    if key not in _trials:
        _trials[key] = Trial(settings, device)
    return _trials[key]


@dataclass(frozen=True)
class Group:
    """Hold the bytes of one group's states, and the rows of its first optimizer step."""

    before: int  # when the last velocity is computed
    most: int  # at most, while the rollout makes them
    kept: int  # after it
    unshared: int  # if no two states shared memory
    choices: int  # bytes of all updates
    first: Rows

    def rows(self, n: int) -> Rows:
        """Return n rows like those of the first optimizer step."""
        columns = [getattr(self.first, field.name) for field in fields(self.first)]
        return type(self.first)(*(torch.zeros(n, *c.shape[1:], dtype=c.dtype, device=c.device) for c in columns))


def group_of(trial: Trial, method: Method) -> Group:
    """Run one group's rollout and make its rows."""
    rewards = torch.randn(1, method.group_size, generator=torch.Generator().manual_seed(0))
    with Followed(trial.block) as seen:
        tree, before = _rolled(trial, method, _noise(trial), seen)
        most, kept = seen.peak, seen.held
        updates = method.updates(tree, method.credit(tree, rewards, rewards), [torch.Generator()], Iteration(0))
        choices = seen.held - kept
    unshared = tree.root.nbytes + sum(step.x.nbytes + step.v.nbytes + step.y.nbytes for step in tree.steps)
    return Group(before, most, kept, unshared, choices, updates[0])


@dataclass(frozen=True)
class Drafts:
    """Hold the bytes of one group's drafts."""

    before: int  # when the last velocity is computed
    most: int  # at most
    noise: int  # that stays until some of them are rolled out in full


def drafts_of(trial: Trial, method: Method, scouts: Scouts) -> Drafts:
    """Draft one group's samples."""
    noise = Recorded(_noise(trial))
    with Followed(trial.block) as seen:
        _, before = _rolled(trial, drafting(method, scouts.count, scouts.steps), noise, seen)
    return Drafts(before, seen.peak, nbytes(noise.drawn))


def _noise(trial: Trial) -> Noise:
    return lambda n: torch.empty(1, n, *trial.shape, device=META)


def _rolled(trial: Trial, method: Method, noise: Noise, seen: Followed) -> tuple[Tree, int]:
    """Run one group's rollout; return its tree, and the bytes that are held when the last velocity is computed."""
    before = 0

    def velocity(x: Tensor, t: float) -> Tensor:
        nonlocal before
        before = max(before, seen.held)
        return torch.cat([torch.empty_like(x)])  # as models.sampling.batched_velocity does

    return method.rollout(velocity, noise, trial.model.times(method.num_steps), Iteration(0)), before
