"""The type of every model, and what the families share: parts and devices, sizes, precision, guidance, pictures and latents."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from copy import copy
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor, nn

from neighbor_grpo.errors import UserError
from neighbor_grpo.flow.path import Time
from neighbor_grpo.models.checks import default_of, enable_tiling, guidance_scale, token_grid
from neighbor_grpo.models.conditioning import Cond
from neighbor_grpo.models.experts import Transformer
from neighbor_grpo.models.frozen import Frozen
from neighbor_grpo.models.placement import on_device, on_device_in_turn
from neighbor_grpo.models.settings import ModelSettings
from neighbor_grpo.models.times import shift_of, shifted, time_grid

C = TypeVar("C", bound=Cond)
CHECKED = 4  # steps of the grid that is looked at when a model is loaded
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


class Family(ABC, Generic[C]):
    """Hold a pipeline as a flow model: its transformer on the device, its VAE and encoders there only while they are used.

    n prompts, R rows.  Everything comes from the pipeline's own configuration; there are no loops and no solver.
    `guidance_scale` is an input of a guidance-distilled model, None for others.  `cfg` is classifier-free guidance,
    v = v(empty) + cfg·(v(prompt) - v(empty)), with two forwards; 1 turns it off.
    """

    conditioning: type[C]
    encoders: ClassVar[tuple[str, ...]]  # the pipeline's encoders of texts and source pictures, by attribute
    optional: ClassVar[tuple[str, ...]] = ()  # components that a pipeline may be saved without
    empty_prompt: ClassVar[str] = ""  # the prompt that classifier-free guidance leads away from
    source_images: ClassVar[int] = 0  # source pictures of each prompt
    own_sigmas: ClassVar[bool] = False  # whether the pipeline leaves the times to a scheduler that has those of a flow
    frames: int | None  # of a video; None for a picture

    def __init__(self, pipe: DiffusionPipeline, device: torch.device, dtype: torch.dtype, settings: ModelSettings) -> None:
        self.pipe, self.device, self.dtype = pipe, device, dtype
        self.transformer: Transformer = pipe.transformer.requires_grad_(False).eval().to(device)
        self.config = pipe.transformer.config
        self.vae = pipe.vae.requires_grad_(False).eval()
        for encoder in self._encoders():
            encoder.requires_grad_(False).eval()
        self.closed = False  # whether it knows only the words of its own prompts, as the models of the package do
        self.empty_text: Cond | None = None  # the conditioning of the empty prompt, once it is encoded
        self.frozen: Frozen | None = None  # how weights are stored that cannot be trained themselves
        if settings.vae_tiling:
            enable_tiling(self.vae)
        self.configure(settings)

    def configure(self, settings: ModelSettings) -> None:
        """Take over the settings that change no module: guidance, text length, size, frames, times.

        Raises UserError for one that this model does not know or cannot do.
        """
        self.settings = settings
        self.guidance_scale = guidance_scale(self.pipe, settings.guidance_scale)
        self.cfg = settings.cfg
        self.max_sequence_length = settings.max_sequence_length or self.default_sequence_length()
        height, width = self.default_size()
        self.height, self.width = settings.height or height, settings.width or width
        self.grid = token_grid(self.height, self.width, self.patch * self.vae_factor, self.max_side())
        self.frames = self.frame_count(settings.num_frames)
        self.scheduler = self.pipe.scheduler
        if settings.shift != "auto":
            self.scheduler = shifted(self.pipe.scheduler, settings.shift, self.schedule(CHECKED))
        self.times(CHECKED)

    def with_settings(self, **changes: Any) -> Self:
        """Return a model of the same modules with other settings of `configure`, for instance another size."""
        model = copy(self)
        model.configure(self.settings.model_copy(update=changes))
        return model

    # ---------------------------------------------------------------- what every family defines

    @abstractmethod
    def default_sequence_length(self) -> int:
        """Return the number of text tokens that the pipeline takes by default."""

    @abstractmethod
    def default_size(self) -> tuple[int, int]:
        """Return height and width in pixels that the pipeline draws by default."""

    @abstractmethod
    def embed_text(self, texts: list[str]) -> Cond:
        """Encode texts on the device: the text fields of the conditioning, of equal shape for every text."""

    @abstractmethod
    def blank_text(self, n: int) -> Cond:
        """Build text fields of the shapes and types that `embed_text` returns, from the configuration alone."""

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, cond: C) -> Tensor:
        """Compute v in one pass of the transformer: rows x [R, *latent] in `dtype`, t [R] fp32, conditioning in `dtype`."""

    # ---------------------------------------------------------------- what some families define otherwise

    @property
    def patch(self) -> int:
        """Return the positions of the VAE's grid along a side of a token."""
        return 2

    @property
    def vae_factor(self) -> int:
        """Return the pixels along a side of a position of the VAE's grid."""
        return self.pipe.vae_scale_factor

    @property
    def lora_targets(self) -> list[str]:
        """Return the endings of the names of the layers that a LoRA adapts by default: the attention projections."""
        return list(ATTENTION)

    def max_side(self) -> int | None:
        """Return the tokens of the longest side that the model has positions for; None if any side will do."""
        return None

    def frame_count(self, num_frames: int | None) -> int | None:
        """Return the number of frames for the setting `num_frames`; None for a picture."""
        if num_frames not in (None, 1):
            raise UserError(f"this model draws pictures: leave out num_frames={num_frames}")
        return None

    def embed_images(self, images: list[Sequence[Path]]) -> Cond:
        """Encode the source pictures of each prompt on the device: the other fields of the conditioning."""
        return Cond()

    def blank_images(self, n: int) -> Cond:
        """Build fields of the shapes and types that `embed_images` returns, from the configuration alone."""
        return Cond()

    def noise_shape(self) -> tuple[int, ...]:
        """Return the shape in which noise is drawn for one row, before it is packed: [channels, rows, columns]."""
        rows, columns = (self.patch * tokens for tokens in self.grid)
        return self.config.in_channels, rows, columns

    def pack(self, z: Tensor) -> Tensor:
        """Arrange z [R, *noise_shape] as the transformer takes it, x [R, *latent]."""
        return z

    def unpack(self, x: Tensor) -> Tensor:
        """Arrange x [R, *latent] as the VAE takes it: the inverse of `pack`."""
        return x

    def to_vae(self, x: Tensor) -> Tensor:
        """Turn latents x [R, *latent] into the VAE's own: unpacked and unscaled."""
        return self.unpack(x) / self.vae.config.scaling_factor + self.vae.config.shift_factor

    def from_vae(self, z: Tensor) -> Tensor:
        """Turn the VAE's own latents into x [R, *latent]: the inverse of `to_vae`."""
        return self.pack((z - self.vae.config.shift_factor) * self.vae.config.scaling_factor)

    def to_image(self, x: Tensor) -> Tensor:
        """Decode x in one pass of the VAE: pictures [R, 3, H, W] or videos [R, T, 3, H, W] in [-1, 1]."""
        return self.vae.decode(self.to_vae(x).to(self.vae.dtype), return_dict=False)[0]

    def vae_mean(self, images: Tensor) -> Tensor:
        """Encode pictures in [-1, 1], of the shapes of `to_image`, in one pass of the VAE: the mean of its posterior."""
        return self.vae.encode(images.to(self.vae.dtype), return_dict=False)[0].mode()

    def mu(self, num_steps: int) -> float:
        """Return the shift of a scheduler that shifts by the picture's size: a line through two sizes."""
        config = self.scheduler.config
        return calculate_shift(
            self.grid[0] * self.grid[1],
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )

    def schedule(self, num_steps: int) -> dict[str, Any]:
        """Return the arguments of the scheduler's `set_timesteps` in the pipeline's own call."""
        if self.own_sigmas and self.scheduler.config.get("use_flow_sigmas"):
            return {"num_inference_steps": num_steps, "mu": self.mu(num_steps)}
        return {"sigmas": np.linspace(1.0, 1 / num_steps, num_steps), "mu": self.mu(num_steps)}

    def guide(self, v: Tensor, empty: Tensor) -> Tensor:
        """Combine the velocities of prompt and empty prompt by classifier-free guidance."""
        return empty + self.cfg * (v - empty)

    # ---------------------------------------------------------------- what all families share

    @property
    def autocast(self) -> bool:
        """Return whether forwards run under autocast: only for weights that are trained in fp32.

        A LoRA casts its own products (models.lora).  A frozen transformer runs as in its pipeline: in `dtype`, except what
        its architecture keeps in fp32.
        """
        return self.dtype != torch.float32 and self.transformer.dtype == torch.float32

    def default(self, name: str) -> Any:
        """Return the default of an argument of the pipeline's `__call__`."""
        return default_of(self.pipe, name)

    def times(self, num_steps: int) -> list[float]:
        """Return the grid 1 >= t_0 > ... > t_N = 0 of the scheduler.  Raises UserError where it has another one."""
        return time_grid(self.scheduler, self.schedule(num_steps))

    def shift(self, num_steps: int) -> float | None:
        """Return the m of t <- m·t / (1 + (m - 1)·t), by which the times are shifted; None: by nothing."""
        return shift_of(self.scheduler, self.mu(num_steps))

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw standard normal latents [n, *latent], on the CPU so that a seed means the same picture on every device."""
        return self.pack(torch.randn(n, *self.noise_shape(), generator=generator)).to(self.device)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], images: Sequence[Sequence[Path]] = ()) -> C:
        """Encode each prompt, its text and its source pictures if the model takes any: conditioning [n, ...] on the CPU.

        Raises UserError for a prompt with another number of source pictures than the model takes.
        """
        pictures = list(images) or [()] * len(texts)
        if any(len(own) != self.source_images for own in pictures):
            raise UserError(
                'this model starts from a picture: give every prompt one, {"prompt": ..., "image": FILE}'
                if self.source_images
                else 'this model takes no source picture: leave "image" out of the prompts'
            )
        with on_device_in_turn(self._encoders(), self.device):
            cond = self.conditioning.of(self.embed_text(list(texts)), self.embed_images(pictures))
        return cond.map(lambda tensor: tensor.cpu())

    def blank(self, n: int) -> C:
        """Build conditioning of the shapes and types that `encode` returns, on the device, from the configuration alone."""
        return self.conditioning.of(self.blank_text(n), self.blank_images(n))

    def unguided(self, cond: C) -> C:
        """Replace the text of each prompt by the empty prompt; source pictures stay."""
        if self.empty_text is None:
            with torch.no_grad(), on_device_in_turn(self._encoders(), self.device):
                self.empty_text = self.embed_text([self.empty_prompt]).to(self.device)
        return cond.updated(self.empty_text.map(lambda tensor: tensor.expand(len(cond), *tensor.shape[1:])))

    def velocity(self, x: Tensor, t: Time, cond: C) -> Tensor:
        """Compute v(x, t), fp32, for rows x [R, *latent], t a float or [R], and the conditioning of each row [R, ...]."""
        t = t.to(self.device, torch.float32) if isinstance(t, Tensor) else torch.full((len(x),), t, device=self.device)
        v = self._forward(x, t, cond)
        if self.cfg == 1:
            return v
        return self.guide(v, self._forward(x, t, self.unguided(cond)))

    @torch.no_grad()
    def decode(self, x: Tensor, batch: int = 16) -> Tensor:
        """Decode latents to pictures [R, 3, H, W] or videos [R, T, 3, H, W] in [0, 1], fp32, on the CPU."""
        with on_device(self.vae, self.device):
            images = [(self.to_image(rows).float() / 2 + 0.5).clamp(0, 1).cpu() for rows in x.to(self.device).split(batch)]
        return torch.cat(images)

    @torch.no_grad()
    def from_image(self, images: Tensor, batch: int = 16) -> Tensor:
        """Encode pictures [R, 3, H, W] or videos [R, T, 3, H, W] in [0, 1] to clean latents x0 [R, *latent], as `noise` is.

        x0 is the mean of the VAE's posterior, so nothing is drawn.  Raises UserError for another shape than the model draws.
        """
        shape = (3, self.height, self.width) if self.frames is None else (self.frames, 3, self.height, self.width)
        if images.shape[1:] != shape:
            raise UserError(
                f"this model takes pictures of {' x '.join(map(str, shape))}, not {' x '.join(map(str, images.shape[1:]))}: "
                "resize them, or set height, width and num_frames"
            )
        with on_device(self.vae, self.device):
            means = [self.vae_mean(2 * rows.to(self.device, torch.float32) - 1).float() for rows in images.split(batch)]
            return torch.cat([self.from_vae(mean) for mean in means])

    def zeros(self, *shape: int) -> Tensor:
        """Return zeros on the device, in `dtype`."""
        return torch.zeros(shape, device=self.device, dtype=self.dtype)

    def _forward(self, x: Tensor, t: Tensor, cond: C) -> Tensor:
        # lengths and masks stay on the CPU, where reading them does not wait for the GPU
        cond = cond.map(lambda c: c.to(self.device, self.dtype) if c.is_floating_point() else c.cpu())
        cast = self.autocast and self.device.type != "meta"  # on meta, footprint.Kernels stands in for autocast
        keep = torch.is_grad_enabled()  # a rollout would keep autocast's copies of the weights for nothing
        with torch.autocast(self.device.type, self.dtype, cache_enabled=keep) if cast else nullcontext():
            try:
                return self.forward(x.to(self.device, self.dtype), t, cond).float()
            except ValueError as error:
                if "attn_mask" not in str(error):
                    raise
                raise UserError(f"model.attention: this model masks the padding of its text, and {error}") from error

    def _encoders(self) -> list[nn.Module]:
        return [encoder for name in self.encoders if (encoder := getattr(self.pipe, name)) is not None]
