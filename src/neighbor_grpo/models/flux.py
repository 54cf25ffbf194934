"""FLUX.1 (dev, schnell and whatever has their architecture) through diffusers' FluxPipeline.

A latent is packed: [tokens, channels], a token being 2 x 2 positions of the VAE's grid.
"""

import hashlib
import inspect
from collections.abc import Sequence
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import torch
from diffusers import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from neighbor_grpo.errors import UserError
from neighbor_grpo.path import Time

_DEFAULTS = inspect.signature(FluxPipeline.__call__).parameters


class FluxCond(NamedTuple):
    text: Tensor  # [n, L, d]  T5 sequence
    pooled: Tensor  # [n, d']  CLIP


class Flux:
    Cond = FluxCond

    def __init__(
        self, pipe: FluxPipeline, device: torch.device, dtype: torch.dtype,
        height: int | None, width: int | None, guidance_scale: float, max_sequence_length: int | None,
    ) -> None:
        self.pipe, self.device, self.dtype = pipe, device, dtype
        self.transformer = pipe.transformer.requires_grad_(False).eval().to(device)
        self.config = pipe.transformer.config
        self.vae = pipe.vae.requires_grad_(False).eval().to(device)
        self.encoders = [pipe.text_encoder.requires_grad_(False).eval(), pipe.text_encoder_2.requires_grad_(False).eval()]
        self.guidance_scale = guidance_scale
        self.max_sequence_length = max_sequence_length or min(
            _DEFAULTS["max_sequence_length"].default, pipe.tokenizer_2.model_max_length
        )
        self.height, self.width = height or self.vae.config.sample_size, width or self.vae.config.sample_size
        multiple = 2 * pipe.vae_scale_factor
        if self.height % multiple or self.width % multiple:
            raise UserError(
                f"height and width must be multiples of {multiple} for this VAE, not {self.height} x {self.width}"
            )
        self.grid = self.height // multiple, self.width // multiple  # tokens
        self.image_ids = pipe._prepare_latent_image_ids(1, *self.grid, device, dtype)
        self.text_ids = torch.zeros(self.max_sequence_length, 3, device=device, dtype=dtype)

    @property
    def fingerprint(self) -> str:
        """Of the text encoders' weights (the ends of every tensor) and the sequence length."""
        digest = hashlib.sha256(str(self.max_sequence_length).encode())
        for encoder in self.encoders:
            for name, weight in encoder.named_parameters():
                ends = torch.cat([weight.flatten()[:16], weight.flatten()[-16:]]).float().cpu()
                digest.update(name.encode() + str(tuple(weight.shape)).encode() + ends.numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> FluxCond:
        """The encoders visit the device for this call only."""
        for encoder in self.encoders:
            encoder.to(self.device)
        text, pooled, _ = self.pipe.encode_prompt(
            list(prompts), prompt_2=None, device=self.device, max_sequence_length=self.max_sequence_length
        )
        for encoder in self.encoders:
            encoder.to("cpu")
        return FluxCond(text.cpu(), pooled.cpu())

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        channels, rows, columns = self.config.in_channels // 4, 2 * self.grid[0], 2 * self.grid[1]
        x = torch.randn(n, channels, rows, columns, generator=generator)
        return self.pipe._pack_latents(x, n, channels, rows, columns).to(self.device)

    def times(self, num_steps: int) -> list[float]:
        scheduler = deepcopy(self.pipe.scheduler)
        mu = calculate_shift(
            self.grid[0] * self.grid[1],
            scheduler.config.get("base_image_seq_len", 256), scheduler.config.get("max_image_seq_len", 4096),
            scheduler.config.get("base_shift", 0.5), scheduler.config.get("max_shift", 1.15),
        )
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=mu)
        return scheduler.sigmas.tolist()

    def velocity(self, x: Tensor, t: Time, cond: FluxCond) -> Tensor:
        t = torch.as_tensor(t, dtype=torch.float32, device=self.device).expand(len(x))
        guidance = torch.full_like(t, self.guidance_scale) if self.config.guidance_embeds else None
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            v = self.transformer(
                hidden_states=x.to(self.dtype), timestep=t, guidance=guidance, img_ids=self.image_ids,
                txt_ids=self.text_ids, encoder_hidden_states=cond.text.to(self.device, self.dtype),
                pooled_projections=cond.pooled.to(self.device, self.dtype), return_dict=False,
            )[0]
        return v.float()

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        x = self.pipe._unpack_latents(x, self.height, self.width, self.pipe.vae_scale_factor)
        x = x / self.vae.config.scaling_factor + self.vae.config.shift_factor
        images = self.vae.decode(x.to(self.vae.dtype), return_dict=False)[0]
        return (images.float() / 2 + 0.5).clamp(0, 1)
