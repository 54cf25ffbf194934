"""Wan 2.2 A14B, text to video, for the contract: two experts."""

from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from family_wan import FRAMES, GUIDED, LENGTH, LORA, SIZES, call, parts, transformer  # noqa: F401


def build() -> WanPipeline:
    """Of 3 or of 5 steps the first two go to the first expert."""
    return WanPipeline(
        **parts(),
        transformer=transformer(),
        transformer_2=transformer(),
        boundary_ratio=0.75,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def load_lora(pipe, directory) -> None:
    pipe.load_lora_weights(directory)
    pipe.load_lora_weights(directory / "transformer_2", load_into_transformer_2=True)
