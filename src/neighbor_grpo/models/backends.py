"""Faster kernels for a transformer: attention backends and torch.compile."""

import torch

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


def leave_out_cudnn() -> None:
    """Take cuDNN's attention out of what torch chooses from, for all models of the process.

    Since torch 2.11 it comes first on an H100, and there its backward reads outside of its tensors for FLUX in bfloat16 (an
    illegal memory access), or returns NaN (pytorch issue 196678).  Flash attention is as fast; `model.attention=_native_cudnn`
    still takes cuDNN's.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def compile_blocks(transformer: Transformer) -> None:
    """Compile the block that repeats, so that one compilation serves all.  Raises UserError if no block repeats."""
    try:
        transformer.compile_repeated_blocks()
    except ValueError as error:
        raise UserError(
            f"model.compile: {type(transformer).__name__} does not name its repeated blocks: set model.compile=false"
        ) from error
