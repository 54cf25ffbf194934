"""What the adapters share: the parts of a pipeline and their devices, sizes, precision, classifier-free guidance."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from typing import ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from neighbor_grpo.errors import UserError
from neighbor_grpo.path import Time

Cond = tuple[Tensor, ...]  # conditioning of n prompts, each tensor [n, ...]: a named tuple of the adapter's, its `Cond`


class Family(ABC):
    """A pipeline's transformer and VAE on the device, its text encoders on the CPU between uses.  See models.FlowModel.

    Of the three ways to guide, `guidance_scale` goes to a model that was distilled to take it, and costs nothing; `cfg` is
    classifier-free guidance, v(empty) + cfg·(v(prompt) - v(empty)), two forwards, 1 = none.
    """

    Cond: ClassVar[type[Cond]]
    encoders: ClassVar[tuple[str, ...]]  # the pipeline's text encoders, by attribute
    patch: ClassVar[int] = 2  # positions of the VAE's grid along a side of a token
    empty: ClassVar[str] = ""  # the prompt that classifier-free guidance leads away from

    def __init__(
        self, pipe: DiffusionPipeline, device: torch.device, dtype: torch.dtype, height: int | None, width: int | None,
        guidance_scale: float, max_sequence_length: int | None, cfg: float,
    ) -> None:
        self.pipe, self.device, self.dtype = pipe, device, dtype
        self.transformer = pipe.transformer.requires_grad_(False).eval().to(device)
        self.config = pipe.transformer.config
        self.vae = pipe.vae.requires_grad_(False).eval().to(device)
        for encoder in self._encoders():
            encoder.requires_grad_(False).eval()
        self.guidance_scale, self.cfg, self._empty = guidance_scale, cfg, None
        self.max_sequence_length = max_sequence_length or self.sequence_length()
        self.height, self.width = height or self.side(), width or self.side()
        multiple = self.patch * pipe.vae_scale_factor
        if self.height % multiple or self.width % multiple:
            raise UserError(
                f"height and width must be multiples of {multiple} for this VAE, not {self.height} x {self.width}"
            )
        self.grid = self.height // multiple, self.width // multiple  # tokens

    # ---------------------------------------------------------------- what a family is

    @abstractmethod
    def sequence_length(self) -> int:
        """Text tokens that its pipeline takes when nothing else is said."""

    @abstractmethod
    def side(self) -> int:
        """Pixels of a side when nothing else is said."""

    @abstractmethod
    def embed(self, prompts: list[str]) -> Cond:
        """Conditioning on the device, of equal shape for every prompt."""

    @abstractmethod
    def noise(self, n: int, generator: torch.Generator) -> Tensor: ...

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """One pass of the transformer: v of rows x [R, *latent] in `dtype`, t [R] fp32, conditioning in `dtype`."""

    @abstractmethod
    def to_image(self, x: Tensor) -> Tensor:
        """The VAE's picture of x, in [-1, 1]."""

    def mu(self, num_steps: int) -> float:
        """The grid's shift, for a scheduler that shifts by the picture's size: a line through two sizes."""
        config = self.pipe.scheduler.config
        return calculate_shift(
            self.grid[0] * self.grid[1], config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5), config.get("max_shift", 1.15),
        )

    def times(self, num_steps: int) -> list[float]:
        scheduler = deepcopy(self.pipe.scheduler)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=self.mu(num_steps))
        return scheduler.sigmas.tolist()

    def guide(self, v: Tensor, empty: Tensor) -> Tensor:
        """Classifier-free guidance."""
        return empty + self.cfg * (v - empty)

    # ---------------------------------------------------------------- what all do alike

    @property
    def fingerprint(self) -> str:
        """Of the text encoders' weights (the ends of every tensor) and the sequence length."""
        digest = hashlib.sha256(str(self.max_sequence_length).encode())
        for encoder in self._encoders():
            for name, weight in encoder.named_parameters():
                ends = torch.cat([weight.flatten()[:16], weight.flatten()[-16:]]).float().cpu()
                digest.update(name.encode() + str(tuple(weight.shape)).encode() + ends.numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Cond:
        """The encoders visit the device for this call only."""
        for encoder in self._encoders():
            encoder.to(self.device)
        cond = self.embed(list(prompts))
        for encoder in self._encoders():
            encoder.to("cpu")
        return self.Cond(*(tensor.cpu() for tensor in cond))

    def velocity(self, x: Tensor, t: Time, cond: Cond) -> Tensor:
        t = torch.as_tensor(t, dtype=torch.float32, device=self.device).expand(len(x))
        v = self._forward(x, t, cond)
        if self.cfg == 1:
            return v
        if self._empty is None:
            self._empty = self.encode([self.empty])
        return self.guide(v, self._forward(x, t, self.Cond(*(c.expand(len(x), *c.shape[1:]) for c in self._empty))))

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        return (self.to_image(x).float() / 2 + 0.5).clamp(0, 1)

    def _forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        cond = self.Cond(*(c.to(self.device, self.dtype if c.is_floating_point() else c.dtype) for c in cond))
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.forward(x.to(self.dtype), t, cond).float()

    def _encoders(self) -> list[torch.nn.Module]:
        return [encoder for name in self.encoders if (encoder := getattr(self.pipe, name)) is not None]
