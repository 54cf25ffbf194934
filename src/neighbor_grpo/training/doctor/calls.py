"""The check of the sampling: our Euler solver against the `__call__` of the diffusers pipeline."""

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from neighbor_grpo.files.frames import read_frames
from neighbor_grpo.models.family import Family
from neighbor_grpo.models.placement import on_device
from neighbor_grpo.models.sampling import sample
from neighbor_grpo.models.text_cache import encode_prompts
from neighbor_grpo.prompts.prompt import Prompt
from neighbor_grpo.run.findings import Finding

STEPS = 4
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 4 * 2.0**-7}  # root mean square in [0, 1]: a few roundings of the type


def sampling(model: Family, prompts: Sequence[Prompt]) -> Finding:
    """Draw one picture of each prompt by both, from the same noise, and compare them."""
    noise = torch.cat([model.noise(1, torch.Generator().manual_seed(seed)) for seed in range(len(prompts))])
    ours = sample(model, encode_prompts(model, prompts), noise[:, None], STEPS, "euler")[:, 0]
    model.pipe.set_progress_bar_config(disable=True)
    with ExitStack() as stack:
        for name in (*model.encoders, "vae"):
            if (part := getattr(model.pipe, name, None)) is not None:
                stack.enter_context(on_device(part, model.device))
        pieces = [_call(model, noise[n : n + 1], prompt) for n, prompt in enumerate(prompts)]
    theirs = torch.cat(pieces).float().cpu()
    limit = TOLERANCE.get(model.dtype, TOLERANCE[torch.float32])
    if ours.shape != theirs.shape:
        text = f"the pipeline's pictures are {tuple(theirs.shape)}, ours {tuple(ours.shape)}"
        return Finding("sampling", "error", text, None, limit)
    distance = float((ours - theirs).square().mean().sqrt())
    text = f"our pictures and those of {type(model.pipe).__name__} differ by {distance:.2g} (root mean square, range 0 to 1)"
    return Finding("sampling", "ok" if distance <= limit else "error", text, distance, limit)


@torch.no_grad()
def _call(model: Family, noise: Tensor, prompt: Prompt) -> Tensor:
    """Return the picture [1, 3, H, W] or video [1, T, 3, H, W] in [0, 1] of the pipeline's own `__call__`."""
    known = inspect.signature(type(model.pipe).__call__).parameters
    scale = _guidance_scale(model, known)
    guidance: dict[str, Any] = {} if scale is None else {"guidance_scale": scale}
    if "true_cfg_scale" in known and model.cfg > 1:
        guidance |= {"true_cfg_scale": model.cfg, "negative_prompt": [model.empty_prompt]}
    size = {"height": model.height, "width": model.width, "num_frames": model.frames}
    optional = {
        "max_sequence_length": model.max_sequence_length,
        "image": read_frames(prompt.images[0])[0] if prompt.images else None,
    }
    drawn = model.pipe(
        prompt=[prompt.text],  # a list of its own: one pipeline writes into it
        num_inference_steps=STEPS,
        latents=_latents(model, noise),
        output_type="pt",
        **guidance,
        **{key: value for key, value in (size | optional).items() if value is not None and key in known},
    )
    return drawn.frames if model.frames else drawn.images


def _guidance_scale(model: Family, known: Any) -> float | None:
    """Return the scale as this pipeline counts it: of a distilled model, or classifier-free guidance; None: neither."""
    if "true_cfg_scale" in known or model.config.get("guidance_embeds"):
        return model.guidance_scale
    return model.cfg - 1 if type(model.pipe).__name__ == "ZImagePipeline" else model.cfg  # v + (cfg - 1)(v - empty)


def _latents(model: Family, noise: Tensor) -> Tensor:
    """Arrange noise as the pipeline takes it: FLUX.2 as a grid of tokens."""
    return noise.mT.unflatten(2, model.grid) if type(model.pipe).__name__.startswith("Flux2") else noise
