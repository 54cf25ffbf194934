"""Does the picture show the text that its prompt asks for?  (Flow-GRPO, arXiv 2505.05470)"""

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


def quoted(prompt: str) -> str | None:
    """The first text in double quotes, or else in single ones."""
    match = _DOUBLE.search(prompt) or _SINGLE.search(prompt)
    return next(text for text in match.groups() if text) if match else None


def text_score(target: str, read: str) -> float:
    """1 - min(edit distance, n) / n of the target's n characters, lower-case and without spaces; 1 if it is within `read`."""
    target, read = ("".join(text.lower().split()) for text in (target, read))
    if target in read:
        return 1.0
    distance = _extra("rapidfuzz.distance").Levenshtein.distance(target, read)
    return 1 - min(distance, len(target)) / len(target)


def _extra(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"the ocr reward reads with rapidocr ({error}): pip install 'neighbor-grpo[ocr]'") from error


@dataclass(frozen=True, config=STRICT)
class Ocr:
    """`text_score` of the prompt's quoted text, or of metadata "text", and the lines read, from top to bottom.

    Flow-GRPO reads with PaddleOCR; this engine runs the same family of models, which come inside its wheel.  As there,
    text is taken to be upright.
    """

    confidence: Annotated[float, Field(ge=0, le=1, description="lines read with less are dropped")] = 0.5

    @cached_property
    def engine(self) -> Any:
        for module in ("onnxruntime", "rapidfuzz.distance"):
            _extra(module)
        return _extra("rapidocr").RapidOCR(
            params={"Global.log_level": "critical", "Global.use_cls": False, "Global.text_score": self.confidence}
        )

    def load(self) -> None:
        """Find out now whether the engine is installed."""
        _ = self.engine

    def read(self, image: Tensor) -> str:
        """What is written in a picture [3, H, W]."""
        pixels = to_bytes(image)
        bgr = pixels.flip(0).permute(1, 2, 0).contiguous().numpy()  # the order that the engine takes arrays to have
        return "".join(self.engine(bgr).txts or ())

    def _score(self, image: Tensor, prompt: str, metadata: dict) -> float | Exception:
        target = metadata.get("text") or quoted(prompt)
        if not isinstance(target, str) or not target.strip():
            return ValueError('the prompt quotes no text: put it in double quotes, or in the metadata as "text"')
        try:
            return text_score(target, self.read(image))
        except Exception as error:  # of the engine, about this picture
            return error

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> list[float | Exception]:
        self.load()
        return [self._score(*row) for row in zip(images, prompts, metadata, strict=True)]
