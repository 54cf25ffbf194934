"""Pictures from fixed seeds, what they score, and how they look side by side.  P prompts, S pictures of each."""

from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from neighbor_grpo.data import Prompt, for_each, generator
from neighbor_grpo.errors import UserError
from neighbor_grpo.metrics import METRICS
from neighbor_grpo.models import Cond, FlowModel, load_model, pick_device, pick_dtype, take
from neighbor_grpo.rewards import REWARDS, load_reward, score
from neighbor_grpo.rundir import config_of, resume_command
from neighbor_grpo.solvers import Velocity, solve


def batched_velocity(model: FlowModel, cond: Cond, batch: int) -> Velocity:
    """velocity(x [P, N, *latent], t) of P prompts with their conditioning, at most `batch` rows at a time."""

    @lru_cache(maxsize=1)  # the conditioning of every row: the same from step to step while N is
    def parts(n: int) -> list[Cond]:
        return [take(cond, rows) for rows in torch.arange(len(cond[0])).repeat_interleave(n).split(batch)]

    def velocity(x: Tensor, t: float) -> Tensor:
        rows = x.flatten(0, 1).split(batch)
        return torch.cat([model.velocity(part, t, c) for part, c in zip(rows, parts(x.shape[1]), strict=True)]).view_as(x)

    return velocity


def decode(model: FlowModel, x: Tensor, batch: int) -> Tensor:
    """Pictures [P, G, 3, H, W] on the CPU of latents [P, G, *latent]."""
    return torch.cat([model.decode(part) for part in x.flatten(0, 1).split(batch)]).unflatten(0, x.shape[:2]).cpu()


@torch.no_grad()
def sample(
    model: FlowModel, cond: Cond, noise: Tensor, num_steps: int, solver: str, rows: int = 96, decode_rows: int = 16
) -> Tensor:
    """Pictures [P, S, 3, H, W] on the CPU from noise [P, S, *latent]."""
    velocity = batched_velocity(model, cond, rows)
    return decode(model, solve(solver, velocity, noise, model.times(num_steps)), decode_rows)


def fixed_noise(model: FlowModel, prompts: Sequence[int], seeds: int) -> Tensor:
    """The same noise for the same prompt number and seed, whatever else is sampled.  [P, S, *latent]"""
    return torch.stack([torch.cat([model.noise(1, generator(seed, p)) for seed in range(seeds)]) for p in prompts])


def measure(names: Sequence[str], images: Tensor, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Mean of every reward and value of every metric named, over images [P, S, 3, H, W]."""
    texts, metadata = for_each(prompts, images.shape[1])
    return {
        name: METRICS[name](images, [prompt.text for prompt in prompts]) if name in METRICS
        else score(name, load_reward(name), images.flatten(0, 1), texts, metadata).mean().item()
        for name in names
    }


def evaluate(
    model: FlowModel, prompts: Sequence[Prompt], names: Sequence[str], seeds: int, num_steps: int, solver: str
) -> dict[str, float]:
    """`measure` on fixed noise, the conditioning computed here."""
    cond = model.encode([prompt.text for prompt in prompts])
    return measure(names, sample(model, cond, fixed_noise(model, range(len(prompts)), seeds), num_steps, solver), prompts)


def load_trained(
    path: str | None, run: Path | None, device: str,
    height: int | None = None, width: int | None = None, guidance_scale: float = 3.5,
) -> tuple[FlowModel, dict]:
    """A model, with what a finished run taught it if one is given; and what it is, to be stored with its numbers."""
    where = pick_device(device)
    config = None
    if run:
        config = config_of(run)
        path, height, width = path or config.model.path, height or config.model.height, width or config.model.width
        guidance_scale = config.model.guidance_scale
    model = load_model(path or "scenes", where, pick_dtype("auto", where), height, width, guidance_scale)
    if config:
        export = run / ("lora" if config.model.lora else "transformer")
        if not export.is_dir():
            raise UserError(f"{run} is not finished: go on with {resume_command(run)}")
        if config.model.lora:
            model.pipe.load_lora_weights(export)
        else:
            model.transformer.load_state_dict(type(model.transformer).from_pretrained(export).state_dict())
    return model, {
        "model": path or "scenes", "run": str(run) if run else None, "guidance_scale": guidance_scale,
        "height": model.height, "width": model.width, "dtype": str(model.dtype), "device": str(where),
        "version": version("neighbor-grpo"),
    }


def check_measures(names: Sequence[str]) -> None:
    """Raise ValueError for a name that is neither a metric nor a reward."""
    for name in names:
        if name not in METRICS:
            try:
                load_reward(name)
            except UserError as error:
                if ":" in name:
                    raise
                raise UserError(f"no metric or reward {name!r}: there are {', '.join([*METRICS, *REWARDS])}") from error


def to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray((image.float() * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def gallery(columns: dict[str, Tensor], prompts: Sequence[str], height: int = 128) -> Image.Image:
    """A row for each prompt, a column of S pictures for each title, e.g. before and after.  Tensors [P, S, 3, H, W]"""
    gap, caption = 8, 18
    first = next(iter(columns.values()))
    seeds, width = first.shape[1], round(height * first.shape[-1] / first.shape[-2])
    block = seeds * (width + 2) + gap
    page = Image.new("RGB", (gap + block * len(columns), caption + len(prompts) * (height + caption)), "white")
    draw = ImageDraw.Draw(page)
    for c, (title, images) in enumerate(columns.items()):
        left = gap + c * block
        draw.text((left, 2), title, fill="black")
        for p, prompt in enumerate(prompts):
            top = caption + p * (height + caption)
            if c == 0:
                draw.text((left, top + height + 2), prompt[:160], fill="dimgray")
            for s in range(seeds):
                page.paste(
                    to_pil(images[p, s]).resize((width, height), Image.Resampling.LANCZOS), (left + s * (width + 2), top)
                )
    return page
