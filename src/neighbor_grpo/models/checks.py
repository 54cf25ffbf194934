"""What a model cannot do with a setting, said before it is used."""

import inspect
from typing import Any

from diffusers import DiffusionPipeline

from neighbor_grpo.errors import UserError


def default_of(pipe: DiffusionPipeline, name: str) -> Any:
    """Return the default of an argument of a pipeline's `__call__`."""
    return inspect.signature(type(pipe).__call__).parameters[name].default


def guidance_scale(pipe: DiffusionPipeline, scale: float | None) -> float | None:
    """Return the guidance_scale of a guidance-distilled model: `scale`, or the default of its pipeline; of others None.

    Raises UserError for a scale where the transformer has no input for it.
    """
    if pipe.transformer.config.get("guidance_embeds"):
        return default_of(pipe, "guidance_scale") if scale is None else scale
    if scale is not None:
        raise UserError(
            f"this {type(pipe).__name__} takes no guidance_scale, because its transformer has no input for it: leave it out "
            "(null); classifier-free guidance is cfg"
        )
    return None


def token_grid(height: int, width: int, multiple: int, longest: int | None) -> tuple[int, int]:
    """Return rows and columns of tokens, each of `multiple` pixels a side; longest: tokens of the longest side, None = any.

    Raises UserError for a size that the VAE or the model cannot take.
    """
    if height % multiple or width % multiple:
        raise UserError(f"height and width must be multiples of {multiple} for this VAE, not {height} x {width}")
    rows, columns = height // multiple, width // multiple
    if longest and max(rows, columns) > longest:
        raise UserError(
            f"this model has positions for sides of up to {longest * multiple} pixels, not {height} x {width}: "
            "set height and width to at most that"
        )
    return rows, columns


def enable_tiling(vae: Any) -> None:
    """Let a VAE decode in tiles.  Raises UserError where it cannot."""
    if not hasattr(vae, "use_tiling"):
        raise UserError(f"{type(vae).__name__} cannot decode in tiles: set vae_tiling to false")
    vae.enable_tiling()
