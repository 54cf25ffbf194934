"""Rewards by JPEG size: they need no weights, are easy to raise, and show in the pictures."""

import io
from typing import Any

from torch import Tensor

from neighbor_grpo.files.images import to_pil


def jpeg_bytes(image: Tensor, quality: int = 95) -> int:
    """Measure the size of a picture [3, H, W] in [0, 1] as a JPEG, in bytes."""
    buffer = io.BytesIO()
    to_pil(image).save(buffer, "JPEG", quality=quality)
    return buffer.tell()


def jpeg_compressibility(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
    """Score pictures by -(bytes at quality 95) / 1000 / 500, as in DDPO (arXiv 2305.13301) and Flow-GRPO."""
    return [-jpeg_bytes(image) / 1000 / 500 for image in images]


def jpeg_incompressibility(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
    """Score pictures by the negative of `jpeg_compressibility`."""
    return [jpeg_bytes(image) / 1000 / 500 for image in images]
