"""The Wan pipelines that the tests build, and what their tests share."""

import family_wan
import family_wan_experts
import family_wan_i2v
import torch
from diffusers import UniPCMultistepScheduler

from neighbor_grpo.models.registry import load_model

PROMPTS = ["a red circle left of a blue square", "three green triangles"]
BUILD = {
    "t2v": family_wan.build,
    "i2v": family_wan_i2v.build,
    "experts": family_wan_experts.build,
    "t2v-5B": lambda: family_wan.build(expand_timesteps=True),
    "i2v-5B": lambda: family_wan_i2v.build("2.2-TI2V-5B"),
    "i2v-A14B": lambda: family_wan_i2v.build("2.2-A14B"),
    "unipc": lambda: family_wan.build(
        UniPCMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=5.0,
            solver_order=1,
            disable_corrector=[*range(50)],
        )
    ),
}


def load(place, side=32, frames=5, **settings):
    return load_model(place, height=side, width=side, num_frames=frames, **settings)


def noise_of(model, n=2):
    return model.noise(n, torch.Generator().manual_seed(3))


def train_lora(model):
    """Attach a LoRA of alpha unlike rank and move it away from its start."""
    from neighbor_grpo.models.attach import add_lora

    add_lora(model.transformer, 2, 6, family_wan.LORA)
    with torch.no_grad():
        for weight in model.transformer.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * weight.requires_grad
