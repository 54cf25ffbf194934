"""Wan 2.1 and 2.2 through diffusers' WanPipeline, text to video, and WanImageToVideoPipeline, which starts from a picture.

Wan 2.2 A14B has two experts, and a row goes to the one of its own time (models.experts).  Both are trained, both are guided
by the one cfg.

Wan 2.2 TI2V-5B starts from a picture by keeping it where the first frame is, at time 0, whatever the state has there.  Here
that part of the state is on the straight path to the picture, v = (x - picture) / t, so that a last step from any t to 0
lands on it (but heun, which asks for v at 0).  Without a picture all tokens have the same time, which is given once for a row.
"""

from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import SchedulerMixin
from diffusers.utils import load_image
from PIL import Image
from torch import Tensor

from neighbor_grpo.errors import UserError
from neighbor_grpo.flow.path import Time, per_row
from neighbor_grpo.models.experts import Experts
from neighbor_grpo.models.family import placed, visiting
from neighbor_grpo.models.video import Video


class WanCond(NamedTuple):
    text: Tensor  # [n, L, d]  zeros after the prompt's last token


class Wan(Video):
    Cond = WanCond
    encoders = ("text_encoder",)

    def __init__(self, pipe, device: torch.device, *args) -> None:
        boundary = pipe.config.boundary_ratio
        if pipe.transformer is None or (boundary is not None and pipe.transformer_2 is None):
            raise UserError("this Wan has two experts, and one is missing: load it with both")
        super().__init__(pipe, device, *args)
        if boundary is not None:
            low = pipe.transformer_2.requires_grad_(False).eval().to(device)
            self.transformer = Experts(self.transformer, low, boundary * pipe.scheduler.config.num_train_timesteps)

    @property
    def patch(self) -> int:
        return self.config.patch_size[1]

    def sequence_length(self) -> int:
        return self.default("max_sequence_length")

    def channels(self) -> int:
        return self.vae.config.z_dim

    def embed(self, prompts: list[str], images: list[Path]) -> WanCond:
        return WanCond(self.text(prompts))

    def text(self, prompts: list[str]) -> Tensor:
        return self.pipe.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
            device=self.device,
            dtype=self.dtype,
        )[0]

    def unguided(self, cond: WanCond) -> WanCond:
        """A picture stays."""
        if self._empty is None:
            with torch.no_grad(), visiting([self.pipe.text_encoder], self.device):
                self._empty = WanCond(self.text([self.empty]))
        return cond._replace(text=self._empty.text.expand(len(cond.text), -1, -1))

    def blank(self, n: int) -> WanCond:
        shape = n, self.max_sequence_length, self.config.text_dim
        return WanCond(torch.zeros(shape, device=self.device, dtype=self.dtype))

    def times(self, num_steps: int) -> list[float]:
        """The scheduler's own sigmas.  UniPC's first is 1e-6 below 1, to keep a logarithm finite: here it is 1."""
        first, *rest = self._scheduled(num_steps).sigmas.tolist()
        if abs(first - 1) > 1e-5 or rest[-1] != 0:
            raise UserError(
                f"the scheduler's times run from {first:.4g} to {rest[-1]:.4g}, not from 1 to 0: this is no flow model's "
                "(set use_flow_sigmas to true and final_sigmas_type to zero in its configuration)"
            )
        return [1.0, *rest]

    def timestep(self, t: Tensor) -> Tensor:
        """What the transformer is told.  UniPC tells it integers, and of its first, a hair below n, that is n - 1."""
        n = self.pipe.scheduler.config.num_train_timesteps
        return (t * n).floor().clamp(max=n - 1) if self._whole_timesteps else t * n

    @cached_property
    def _whole_timesteps(self) -> bool:
        return not self._scheduled(1).timesteps.is_floating_point()

    def forward(self, x: Tensor, t: Tensor, cond: WanCond) -> Tensor:
        return self.transformer(hidden_states=x, timestep=self.timestep(t), encoder_hidden_states=cond.text, return_dict=False)[
            0
        ]

    def to_image(self, x: Tensor) -> Tensor:
        mean, std = (
            torch.tensor(values, device=x.device).view(1, -1, 1, 1, 1)
            for values in (self.vae.config.latents_mean, self.vae.config.latents_std)
        )
        return self.vae.decode((x * std + mean).to(self.vae.dtype), return_dict=False)[0].transpose(1, 2)

    def _scheduled(self, num_steps: int) -> SchedulerMixin:
        scheduler = deepcopy(self.pipe.scheduler)
        scheduler.set_timesteps(num_steps)
        return scheduler


class WanImageCond(NamedTuple):
    text: Tensor  # [n, L, d]  zeros after the prompt's last token
    clip: Tensor  # [n, L', d']  the picture as CLIP sees it; empty for a model that does not ask (all of Wan 2.2)
    latents: Tensor  # [n, C, T, h, w]  fp32, the VAE's: a film that starts with it, after its mask; or its frame alone


class WanImage(Wan):
    Cond = WanImageCond
    encoders = ("text_encoder", "image_encoder")
    starts_from_image = True

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.pinned = self.pipe.config.expand_timesteps
        if self.config.pos_embed_seq_len is not None:
            raise UserError("this Wan takes a last picture beside the first one, which is not supported: choose another I2V")
        length = self.sequence_length()
        if self.config.added_kv_proj_dim is not None and self.max_sequence_length != length:
            raise UserError(f"this Wan tells text from the picture by its {length} tokens: leave out max_sequence_length")

    def embed(self, prompts: list[str], images: list[Path]) -> WanImageCond:
        text = self.text(prompts)
        with placed(self.vae, self.device):
            clip, latents = zip(*(self._seen(picture(path)) for path in images), strict=True)
        return WanImageCond(text, torch.cat(clip), torch.cat(latents))

    def _seen(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """One at a time: the VAE encodes a whole film."""
        clip = torch.zeros(1, 0, 0, device=self.device, dtype=self.dtype)
        if self.config.image_dim is not None:
            clip = self.pipe.encode_image(image, self.device).to(self.dtype)
        first = self.pipe.video_processor.preprocess(image, self.height, self.width).to(self.device, torch.float32)
        return clip, self.pipe.prepare_latents(
            first,
            1,
            self.vae.config.z_dim,
            self.height,
            self.width,
            self.frames,
            torch.float32,
            self.device,
            latents=torch.empty(0),
        )[1]

    def blank(self, n: int) -> WanImageCond:
        tokens = 0
        if self.config.image_dim is not None:
            clip = self.pipe.image_encoder.config
            tokens = (clip.image_size // clip.patch_size) ** 2 + 1
        channels, (_, frames, rows, columns) = self.vae.config.z_dim, self.noise(1, torch.Generator())[0].shape
        if self.pinned:
            frames = 1
        else:
            channels += self.pipe.vae_scale_factor_temporal  # the mask
        return WanImageCond(
            *super().blank(n),
            torch.zeros(n, tokens, self.config.image_dim or 0, device=self.device, dtype=self.dtype),
            torch.zeros(n, channels, frames, rows, columns, device=self.device),
        )

    def velocity(self, x: Tensor, t: Time, cond: WanImageCond) -> Tensor:
        if not self.pinned:
            return super().velocity(x, t, cond)
        if not isinstance(t, Tensor) and t == 0:
            raise UserError("this Wan has no velocity at the path's end, where heun asks for one: choose another solver")
        v = super().velocity(x, t, cond)
        t = torch.as_tensor(t, dtype=v.dtype, device=v.device)
        first = (x[:, :, :1].to(v) - cond.latents.to(v)) / per_row(t, x)
        return torch.cat([first, v[:, :, 1:]], dim=2)

    def forward(self, x: Tensor, t: Tensor, cond: WanImageCond) -> Tensor:
        time = self.timestep(t)
        if self.pinned:
            x = torch.cat([cond.latents, x[:, :, 1:]], dim=2)
            time = time[:, None].repeat(1, x.shape[2] * self.grid[0] * self.grid[1])  # of every token
            time[:, : self.grid[0] * self.grid[1]] = 0
        else:
            x = torch.cat([x, cond.latents], dim=1)
        return self.transformer(
            hidden_states=x,
            timestep=time,
            encoder_hidden_states=cond.text,
            return_dict=False,
            encoder_hidden_states_image=cond.clip if self.config.image_dim is not None else None,
        )[0]


def picture(path: Path) -> Image.Image:
    try:
        return load_image(str(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no picture: {error}") from error
