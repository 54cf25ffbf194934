"""Pictures: drawn in batches from fixed noise, decoded, shown side by side.  P prompts, S pictures of each."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from neighbor_grpo.data import generator
from neighbor_grpo.models import Cond, FlowModel, take
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


def as_saved(images: Tensor) -> Tensor:
    """Pictures rounded to 8 bits, as a PNG holds them: what is evaluated is what can be looked at."""
    return (images.float() * 255).round() / 255


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
