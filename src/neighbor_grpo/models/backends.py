"""Faster kernels for a transformer: attention backends and torch.compile."""

from neighbor_grpo.errors import UserError
from neighbor_grpo.models.experts import Transformer


def choose_attention(transformer: Transformer, name: str) -> None:
    """Choose an attention backend of diffusers, which keeps the choice for all models of the process.

    Raises UserError if diffusers does not know the backend or its package is missing.
    """
    try:
        transformer.set_attention_backend(name)
    except (ValueError, ImportError, RuntimeError) as error:
        raise UserError(f"model.attention={name}: {' '.join(str(error).split())}") from error


def compile_blocks(transformer: Transformer) -> None:
    """Compile the block that repeats, so that one compilation serves all.  Raises UserError if no block repeats."""
    try:
        transformer.compile_repeated_blocks()
    except ValueError as error:
        raise UserError(
            f"model.compile: {type(transformer).__name__} does not name its repeated blocks: set model.compile=false"
        ) from error
