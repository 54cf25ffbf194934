"""What the adapters share: the parts of a pipeline and their devices, sizes, precision, classifier-free guidance."""

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from accelerate.utils import send_to_device
from diffusers import DiffusionPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor, nn

from neighbor_grpo.errors import UserError
from neighbor_grpo.flow.path import Time
from neighbor_grpo.models.settings import Drawing

Cond = tuple[Tensor, ...]  # conditioning of n prompts, each tensor [n, ...]: a named tuple of the adapter's, its `Cond`


class Family(ABC):
    """A pipeline's transformer on the device, its VAE and text encoders there while in use.  See models.FlowModel.

    Of the three ways to guide, `guidance_scale` goes to a model that was distilled to take it, and costs nothing; `cfg` is
    classifier-free guidance, v(empty) + cfg·(v(prompt) - v(empty)), two forwards, 1 = none.
    """

    Cond: ClassVar[type[Cond]]
    encoders: ClassVar[tuple[str, ...]]  # the pipeline's encoders of text and of a first picture, by attribute
    patch: ClassVar[int] = 2  # positions of the VAE's grid along a side of a token
    empty: ClassVar[str] = ""  # the prompt that classifier-free guidance leads away from
    starts_from_image: bool = False  # whether every prompt brings a picture
    # endings of the names of the layers that a LoRA adapts when nothing else is said: the attention's projections
    lora_targets: Sequence[str] = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")

    def __init__(self, pipe: DiffusionPipeline, device: torch.device, dtype: torch.dtype, drawing: Drawing) -> None:
        self.pipe, self.device, self.dtype = pipe, device, dtype
        self.transformer = pipe.transformer.requires_grad_(False).eval().to(device)
        self.config = pipe.transformer.config
        self.vae = pipe.vae.requires_grad_(False).eval()
        for encoder in self._encoders():
            encoder.requires_grad_(False).eval()
        scale = drawing.guidance_scale
        self.guidance_scale = self.default("guidance_scale") if scale is None else scale
        self.cfg, self._empty = drawing.cfg, None
        self.max_sequence_length = drawing.max_sequence_length or self.sequence_length()
        height, width = self.size()
        self.height, self.width = drawing.height or height, drawing.width or width
        multiple = self.patch * self.spatial()
        if self.height % multiple or self.width % multiple:
            raise UserError(f"height and width must be multiples of {multiple} for this VAE, not {self.height} x {self.width}")
        self.grid = self.height // multiple, self.width // multiple  # tokens
        longest = self.longest()
        if longest and max(self.grid) > longest:
            raise UserError(
                f"this model has positions for sides of up to {longest * multiple} pixels, not {self.height} x {self.width}: "
                "set height and width to no more"
            )
        self.frames = self.film(drawing.num_frames)
        if drawing.vae_tiling:
            self.vae.enable_tiling()

    # ---------------------------------------------------------------- what a family is

    @abstractmethod
    def sequence_length(self) -> int:
        """Text tokens that its pipeline takes when nothing else is said."""

    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Height and width in pixels when nothing else is said."""

    def longest(self) -> int | None:
        """Tokens of the longest side that the model has positions for; None: of any side."""
        return None

    def spatial(self) -> int:
        """Pixels along a side of a position of the VAE's grid."""
        return self.pipe.vae_scale_factor

    def film(self, num_frames: int | None) -> int | None:
        """Frames of what is drawn; None: it is a picture."""
        if num_frames not in (None, 1):
            raise UserError(f"this model draws pictures: leave out num_frames={num_frames}")
        return None

    @abstractmethod
    def embed(self, prompts: list[str], images: list[Path]) -> Cond:
        """Conditioning on the device, of equal shape for every prompt; images where prompts start from one."""

    @abstractmethod
    def blank(self, n: int) -> Cond:
        """Conditioning of no prompt in particular, of the shapes and types that `embed` gives, from the configuration alone."""

    @abstractmethod
    def noise(self, n: int, generator: torch.Generator) -> Tensor: ...

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """One pass of the transformer: v of rows x [R, *latent] in `dtype`, t [R] fp32, conditioning in `dtype`."""

    @abstractmethod
    def to_image(self, x: Tensor) -> Tensor:
        """The VAE's pictures [R, 3, H, W] or videos [R, T, 3, H, W] of x, in [-1, 1]."""

    def mu(self, num_steps: int) -> float:
        """The grid's shift, for a scheduler that shifts by the picture's size: a line through two sizes."""
        config = self.pipe.scheduler.config
        return calculate_shift(
            self.grid[0] * self.grid[1],
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )

    def times(self, num_steps: int) -> list[float]:
        scheduler = deepcopy(self.pipe.scheduler)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=self.mu(num_steps))
        return scheduler.sigmas.tolist()

    def guide(self, v: Tensor, empty: Tensor) -> Tensor:
        """Classifier-free guidance."""
        return empty + self.cfg * (v - empty)

    def unguided(self, cond: Cond) -> Cond:
        """Conditioning by the empty prompt in place of these."""
        if self._empty is None:
            self._empty = self.encode([self.empty])
        return self.Cond(*(c.expand(len(cond[0]), *c.shape[1:]) for c in self._empty))

    # ---------------------------------------------------------------- what all do alike

    @property
    def autocast(self) -> bool:
        """Whether forwards run under autocast: only for weights that are trained in fp32.

        A LoRA's layers cast their own (models.lora), and a frozen transformer runs as in its pipeline, in `dtype` but for what
        its architecture keeps in fp32.
        """
        return self.dtype != torch.float32 and self.transformer.dtype == torch.float32

    def default(self, name: str):
        """What the pipeline takes when it is called without an argument."""
        return inspect.signature(type(self.pipe).__call__).parameters[name].default

    @property
    def fingerprint(self) -> str:
        """Of the encoders' weights (the ends of every tensor) and the sequence length; with first pictures of the VAE too."""
        digest, encoders = hashlib.sha256(str(self.max_sequence_length).encode()), self._encoders()
        if self.starts_from_image:
            digest.update(str((self.height, self.width, self.frames)).encode())
            encoders.append(self.vae)
        for encoder in encoders:
            for name, weight in encoder.named_parameters():
                ends = torch.cat([weight.flatten()[:16], weight.flatten()[-16:]]).float().cpu()
                digest.update(name.encode() + str(tuple(weight.shape)).encode() + ends.numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], images: Sequence[Path] = ()) -> Cond:
        if self.starts_from_image != bool(images):
            raise UserError(
                'this model starts from a picture: give every prompt one, {"prompt": ..., "image": FILE}'
                if self.starts_from_image
                else 'this model takes no first picture: leave "image" out of the prompts'
            )
        with visiting(self._encoders(), self.device):
            cond = self.embed(list(prompts), list(images))
        return self.Cond(*(tensor.cpu() for tensor in cond))

    def velocity(self, x: Tensor, t: Time, cond: Cond) -> Tensor:
        t = t.to(self.device, torch.float32) if isinstance(t, Tensor) else torch.full((len(x),), t, device=self.device)
        v = self._forward(x, t, cond)
        if self.cfg == 1:
            return v
        return self.guide(v, self._forward(x, t, self.unguided(cond)))

    @torch.no_grad()
    def decode(self, x: Tensor, rows: int = 16) -> Tensor:
        with placed(self.vae, self.device):
            parts = [(self.to_image(part).float() / 2 + 0.5).clamp(0, 1).cpu() for part in x.to(self.device).split(rows)]
        return torch.cat(parts)

    def _forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Conditioning that is no number but a count or a mask stays on the CPU, where reading it does not wait for the GPU."""
        cond = self.Cond(*(c.to(self.device, self.dtype) if c.is_floating_point() else c.cpu() for c in cond))
        cast = self.autocast and self.device.type != "meta"  # which has none: footprint.Kernels stands in for it
        keep = torch.is_grad_enabled()  # the copies of weights, which a rollout would hold for nothing
        with torch.autocast(self.device.type, self.dtype, cache_enabled=keep) if cast else nullcontext():
            try:
                return self.forward(x.to(self.device, self.dtype), t, cond).float()
            except ValueError as error:
                if "attn_mask" not in str(error):
                    raise
                raise UserError(f"model.attention: this model masks its text's padding, and {error}") from error

    def _encoders(self) -> list[nn.Module]:
        return [encoder for name in self.encoders if (encoder := getattr(self.pipe, name)) is not None]


@contextmanager
def placed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """A module on the device, and afterwards on the CPU again."""
    module.to(device)
    try:
        yield
    finally:
        module.to("cpu")


@contextmanager
def visiting(modules: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Each module on the device during its own forward only: the largest of them decides the peak, not their sum.

    Its inputs come along, for some pipelines send them to where they find the module before it.
    """

    def arrive(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        module.to(device)
        return send_to_device(args, device), send_to_device(kwargs, device)

    def leave(module: nn.Module, *_) -> None:
        module.to("cpu")

    hooks = [
        hook
        for module in modules
        for hook in (module.register_forward_pre_hook(arrive, with_kwargs=True), module.register_forward_hook(leave))
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
