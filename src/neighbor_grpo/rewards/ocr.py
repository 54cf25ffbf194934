"""A reward for the text in a picture, read by OCR, as in Flow-GRPO (arXiv 2505.05470)."""

import importlib
import re
from functools import cached_property
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from neighbor_grpo.errors import STRICT, UserError
from neighbor_grpo.files.images import to_bytes

_DOUBLE = re.compile(r'"\s*([^"\s][^"]*)"|“\s*([^”\s][^”]*)”')
_SINGLE = re.compile(r"(?<!\w)['‘](\S.*?)(?<=\S)['’](?!\w)")  # wraps a phrase; an apostrophe has a letter before it


class OcrError(RuntimeError):
    """Report that the engine failed on a picture."""


def quoted(prompt: str) -> str | None:
    """Return the first text in double quotes, else the first in single quotes, else None."""
    match = _DOUBLE.search(prompt) or _SINGLE.search(prompt)
    return next(text for text in match.groups() if text) if match else None


def text_score(target: str, read: str) -> float:
    """Score `read` by 1 - min(edit distance, n) / n, where n is the length of the target, or 1 if it contains the target.

    Both texts are compared in lower case and without spaces.
    """
    target, read = ("".join(text.lower().split()) for text in (target, read))
    if target in read:
        return 1.0
    distance = _extra("rapidfuzz.distance").Levenshtein.distance(target, read)
    return 1 - min(distance, len(target)) / len(target)


def _extra(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"the reward ocr cannot import {module} ({error}): pip install 'neighbor-grpo[ocr]'") from error


@dataclass(frozen=True, config=STRICT)
class Ocr:
    """Score pictures by `text_score` of the text they should show and the text that is read in them, top to bottom.

    The text is the metadata's "text", or what the prompt quotes.  Flow-GRPO reads with PaddleOCR; rapidocr runs the same
    family of models, which come inside its wheel.  As there, text is assumed to be upright.
    """

    confidence: Annotated[float, Field(ge=0, le=1, description="least confidence of a line that is read")] = 0.5

    @cached_property
    def engine(self) -> Any:
        """Return the engine, loaded at the first use.  Raises UserError if it is not installed."""
        for module in ("onnxruntime", "rapidfuzz.distance"):
            _extra(module)
        return _extra("rapidocr").RapidOCR(
            params={"Global.log_level": "critical", "Global.use_cls": False, "Global.text_score": self.confidence}
        )

    def load(self) -> None:
        """Load the engine."""
        _ = self.engine

    def read(self, image: Tensor) -> str:
        """Read the text in a picture [3, H, W].  Raises OcrError if the engine fails."""
        bgr = to_bytes(image).flip(0).permute(1, 2, 0).contiguous().numpy()  # the engine expects blue first
        try:
            lines = self.engine(bgr)
        except Exception as error:  # rapidocr, OpenCV and onnxruntime have their own exceptions without a common class
            raise OcrError(f"{type(error).__name__}: {error}") from error
        return "".join(lines.txts or ())

    def _score(self, image: Tensor, prompt: str, metadata: dict[str, Any]) -> float | Exception:
        target = metadata.get("text") or quoted(prompt)
        if not isinstance(target, str) or not target.strip():
            return ValueError('the prompt quotes no text: put it in double quotes, or in the metadata as "text"')
        try:
            return text_score(target, self.read(image))
        except OcrError as error:
            return error

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float | Exception]:
        """Score pictures [N, 3, H, W]."""
        self.load()
        return [self._score(*row) for row in zip(images, prompts, metadata, strict=True)]
