"""The recipe of a bundled model: renderer -> VAE -> flow matching with the text encoders -> FluxPipeline directory.

Every component is a diffusers or transformers class, so that the result loads with `DiffusionPipeline.from_pretrained` like
any published FLUX.  A world gives its sizes, tokens and pictures as a `Recipe`; all else is the same for every world.
"""

import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from rich.progress import track
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from neighbor_grpo.flow.path import shift_time
from neighbor_grpo.worlds import unfinished
from neighbor_grpo.worlds.components import Text

SHIFT = 3.0  # time shift of sampling and of training
SAVE_EVERY = 60.0  # seconds
KEEP_EVERY = 1000  # steps
WINDOW = 0.3  # share of the pictures that a recipe with a ramp draws from at a time: at first the first, at last the last
# Not cuDNN's attention, which some torch prefers on an H100: with torch 2.11 its backward fails in bfloat16.
ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
Loss: TypeAlias = Callable[[torch.Generator, int], Tensor]  # of a step, by its number


class Pictures(Protocol):
    """Draw n training prompts and their pictures [n, 3, H, W], uint8; where there is a ramp, easy ones first."""

    def __call__(self, n: int, rng: np.random.Generator) -> tuple[list[str], Tensor]:
        """Draw them."""
        ...


@dataclass(frozen=True)
class Recipe:
    """Hold what differs between worlds."""

    pictures: Pictures
    vae: Callable[[], AutoencoderKL]
    transformer: Callable[[], FluxTransformer2DModel]
    text: Callable[[], Text]
    ramp: float = 0.0  # share of the steps of flow matching in which WINDOW moves to the last pictures; 0: it draws from all


@dataclass(frozen=True)
class Settings:
    """Hold what the user chooses; a recipe resumes with the same ones only."""

    vae_steps: int
    steps: int
    pictures: int
    batch: int  # pictures of a step of flow matching; a step of the VAE takes a quarter
    seed: int


# ---------------------------------------------------------------- training


def rate_at(step: int, steps: int) -> float:
    """Return the share of the learning rate at a step: it warms up over 200 steps and falls to 2 % on a cosine."""
    return min(1.0, (step + 1) / 200) * (0.51 + 0.49 * math.cos(math.pi * step / steps))


class Phase:
    """Train a module for some steps: AdamW, the rate of `rate_at`, gradients clipped to a norm of 1.

    It resumes from `state`.  Every step draws from a generator that is seeded by the step's number.
    """

    def __init__(
        self, name: str, module: torch.nn.Module, lr: float, steps: int, seed: int, decay: float | None = None
    ) -> None:
        """Begin; `decay`: that of the moving average of the weights, which is `best`."""
        self.name, self.module, self.lr, self.steps, self.seed, self.step = name, module, lr, steps, seed, 0
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=1e-2, fused=True)
        self.average = decay and torch.optim.swa_utils.AveragedModel(
            module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay), use_buffers=False
        )
        self.losses: list[Tensor] = []

    @property
    def best(self) -> torch.nn.Module:
        """Return the average, or the module itself where none is kept."""
        return self.average.module if self.average else self.module

    def parts(self) -> dict[str, Any]:
        """Return what has a state."""
        return {"module": self.module, "optimizer": self.optimizer} | ({"average": self.average} if self.average else {})

    def state(self) -> dict[str, Any]:
        """Return all that the phase resumes from."""
        return {"step": self.step} | {name: part.state_dict() for name, part in self.parts().items()}

    def run(self, loss: Loss, device: str, state: dict[str, Any] | None, keep: bool = False) -> Iterator[bool]:
        """Take the steps that are left after `state`; yield at each save whether it is one to keep.

        Saves: every SAVE_EVERY seconds and at the last step; to keep: every KEEP_EVERY steps and the last, if `keep`.
        """
        if state:
            self.step = state["step"]
            for name, part in self.parts().items():
                part.load_state_dict(state[name])
        generator, saved = torch.Generator(device), time.monotonic()
        for step in track(range(self.step, self.steps), self.name):
            generator.manual_seed(self.seed * 10**7 + step)
            self.optimizer.param_groups[0]["lr"] = self.lr * rate_at(step, self.steps)
            found = loss(generator, step)
            self.optimizer.zero_grad()
            found.backward()
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            self.optimizer.step()
            if self.average:
                self.average.update_parameters(self.module)
            self.losses.append(found.detach())  # read at a save only: reading waits for the device
            self.step = step + 1
            last = self.step == self.steps
            kept = keep and (last or self.step % KEEP_EVERY == 0)
            if last or kept or time.monotonic() - saved >= SAVE_EVERY:
                print(f"{self.name} step {self.step}: loss {torch.stack(self.losses).mean():.5f}", flush=True)
                self.losses.clear()
                yield kept
                saved = time.monotonic()


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Encode uint8 pictures to the means of the VAE's posterior [n, c, h, w]."""
    return torch.cat([vae.encode(chunk.float() / 127.5 - 1).latent_dist.mean for chunk in images.split(256)])


def vae_phase(vae: AutoencoderKL, images: Tensor, settings: Settings) -> tuple[Phase, Loss]:
    """Return the training of the VAE by mean squared error and a weak KL, with its loss."""

    def loss(generator: torch.Generator, step: int) -> Tensor:
        rows = torch.randint(len(images), (max(settings.batch // 4, 1),), generator=generator, device=images.device)
        x = images[rows].float() / 127.5 - 1
        posterior = vae.encode(x).latent_dist
        error = (vae.decode(posterior.sample(generator)).sample - x).square().mean()
        return error + 1e-5 * posterior.kl().mean() / posterior.mean[0].numel()

    return Phase("VAE", vae, 2e-3, settings.vae_steps, settings.seed), loss


class Velocity(torch.nn.Module):
    """Hold what flow matching trains, and predict the velocity of packed latents x [n, tokens, c] at times t [n]."""

    transformer: FluxTransformer2DModel
    text_encoder: CLIPTextModel
    text_encoder_2: T5EncoderModel
    image_ids: Tensor
    text_ids: Tensor

    def __init__(self, parts: dict[str, torch.nn.Module], image_ids: Tensor, text_ids: Tensor) -> None:
        """Take transformer, text_encoder and text_encoder_2, and the positions of image and text tokens."""
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.register_buffer("image_ids", image_ids, persistent=False)
        self.register_buffer("text_ids", text_ids, persistent=False)

    def forward(self, x: Tensor, t: Tensor, clip_ids: Tensor, t5_ids: Tensor) -> Tensor:
        """Return the velocity [n, tokens, c]; on a GPU in bfloat16, which is slow on many CPUs."""
        device = x.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda", cache_enabled=False):
            v: Tensor = self.transformer(
                hidden_states=x,
                timestep=t,
                guidance=None,
                img_ids=self.image_ids,
                txt_ids=self.text_ids,
                pooled_projections=self.text_encoder(clip_ids).pooler_output,
                encoder_hidden_states=self.text_encoder_2(t5_ids).last_hidden_state,
            ).sample
        return v.float()


def flow_phase(
    vae: AutoencoderKL,
    parts: dict[str, torch.nn.Module],
    latents: Tensor,
    ids: tuple[Tensor, Tensor],
    settings: Settings,
    ramp: float,
) -> tuple[Phase, Loss]:
    """Return the training of transformer and text encoders together by flow matching, with EMA, and its loss.

    x = (1 - t)·x0 + t·eps, target eps - x0.  latents [n, c, h, w]; ids: CLIP's and T5's tokens [n, length].
    """
    n, channels, height, width = latents.shape
    x0_of = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    x0_of = FluxPipeline._pack_latents(x0_of, n, channels, height, width)
    device = latents.device
    image_ids = FluxPipeline._prepare_latent_image_ids(1, height // 2, width // 2, device, torch.float32)
    model = Velocity(parts, image_ids, torch.zeros(ids[1].shape[1], 3)).to(device)
    velocity: Callable[..., Any] = model
    phase = Phase("flow", model, 1.5e-3, settings.steps, settings.seed + 1, decay=0.9985)
    if device.type == "cuda":  # so small a model waits for the launches of its kernels: replay them as graphs
        rows = torch.zeros(settings.batch, dtype=torch.long, device=device)
        example = (x0_of[rows], torch.rand(len(rows), device=device), ids[0][rows], ids[1][rows])
        velocity = torch.cuda.make_graphed_callables(model, example, allow_unused_input=True)
    window = math.ceil(WINDOW * n) if ramp else n

    def first(step: int) -> int:
        return int(min(1.0, step / (ramp * settings.steps)) * (n - window)) if ramp else 0

    def loss(generator: torch.Generator, step: int) -> Tensor:
        rows = first(step) + torch.randint(window, (settings.batch,), generator=generator, device=device)
        x0 = x0_of[rows]
        t = torch.as_tensor(shift_time(torch.sigmoid(torch.randn(len(rows), generator=generator, device=device)), SHIFT))
        eps = torch.randn(x0.shape, generator=generator, device=device)
        x = (1 - t)[:, None, None] * x0 + t[:, None, None] * eps
        v: Tensor = velocity(x, t, ids[0][rows], ids[1][rows])
        return (v - (eps - x0)).square().mean()

    return phase, loss


# ---------------------------------------------------------------- the whole recipe


def pretrain(recipe: Recipe, out: Path, settings: Settings, device: str, keep: bool = False) -> None:
    """Run the whole recipe, or what is left of it; `out` becomes a FluxPipeline directory, written at each save.

    keep: write the model of every KEEP_EVERY steps to `out`/step-N too.  Transformer and VAE are stored in half precision; they
    load as float32.  Raises UserError where `out` holds something else.
    """
    state = unfinished.begin(out, asdict(settings))
    torch.manual_seed(settings.seed)
    vae = recipe.vae().to(device, memory_format=torch.channels_last)
    clip_tokenizer, clip, t5_tokenizer, t5 = recipe.text()
    parts = {"transformer": recipe.transformer(), "text_encoder": clip, "text_encoder_2": t5}
    prompts, images = recipe.pictures(settings.pictures, np.random.default_rng(settings.seed))
    images = images.to(device)

    phase, loss = vae_phase(vae, images, settings)
    for _ in phase.run(loss, device, state.get(phase.name)):
        state[phase.name] = phase.state()
        unfinished.save(out, state)
    latents = encode(vae.eval(), images)
    vae.to(memory_format=torch.contiguous_format)
    vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())

    pad = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    ids = tuple(tokenizer(prompts, **pad).input_ids.to(device) for tokenizer in (clip_tokenizer, t5_tokenizer))
    with sdpa_kernel(ATTENTION):
        phase, loss = flow_phase(vae, parts, latents, ids, settings, recipe.ramp)
        for kept in phase.run(loss, device, state.get(phase.name), keep):
            for place in (out, out / f"step-{phase.step}") if kept else (out,):
                save_pipeline(place, vae, dict(phase.best.named_children()), clip_tokenizer, t5_tokenizer)
            state[phase.name] = phase.state()
            unfinished.save(out, state)
    unfinished.end(out)


def save_pipeline(
    place: Path, vae: AutoencoderKL, parts: dict[str, Any], clip_tokenizer: CLIPTokenizer, t5_tokenizer: T5Tokenizer
) -> None:
    """Write the pipeline of a VAE, two tokenizers, and `parts`: transformer, text_encoder and text_encoder_2."""
    FluxPipeline(
        vae=deepcopy(vae).half(),
        transformer=deepcopy(parts["transformer"]).half(),
        text_encoder=parts["text_encoder"],
        text_encoder_2=parts["text_encoder_2"],
        tokenizer=clip_tokenizer,
        tokenizer_2=t5_tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=math.log(SHIFT), max_shift=math.log(SHIFT)
        ),
    ).save_pretrained(place)
