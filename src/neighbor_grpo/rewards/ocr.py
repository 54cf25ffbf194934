"""A reward for the text in a picture, read by OCR, as in Flow-GRPO (arXiv 2505.05470)."""

import importlib
import re
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Annotated, Any, TypeVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from neighbor_grpo.errors import STRICT, UserError
from neighbor_grpo.files.images import to_bytes

_DOUBLE = re.compile(r'"\s*([^"\s][^"]*)"|“\s*([^”\s][^”]*)”')
_SINGLE = re.compile(r"(?<!\w)['‘](\S.*?)(?<=\S)['’](?!\w)")  # wraps a phrase; an apostrophe has a letter before it


_BATCH = 32  # pictures that are read at once
_LAST: dict[tuple[float, bytes], "list[str | OcrError]"] = {}  # what was read last: `ocr` and `words_exact` ask for the same
_Read = TypeVar("_Read")


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
    target, read = _plain(target), _plain(read)
    if target in read:
        return 1.0
    distance = _extra("rapidfuzz.distance").Levenshtein.distance(target, read)
    return 1 - min(distance, len(target)) / len(target)


def _plain(text: str) -> str:
    return "".join(text.lower().split())


def _extra(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"the reward ocr cannot import {module} ({error}): pip install 'neighbor-grpo[ocr]'") from error


@lru_cache(maxsize=2)
def _engine(confidence: float, detect: bool) -> Any:
    for module in ("onnxruntime", "rapidfuzz.distance"):
        _extra(module)
    params = {"Global.log_level": "critical", "Global.use_cls": False, "Global.text_score": confidence}
    if not detect:  # no wider than the pictures are, where the engine would fill them up to 320 x 48
        params |= {"Rec.rec_img_shape": [3, 48, 48], "Rec.rec_batch_num": _BATCH}
    # one number of threads decides for every library: processes side by side would hinder one another
    params["EngineConfig.onnxruntime.intra_op_num_threads"] = torch.get_num_threads()
    return _extra("rapidocr").RapidOCR(params=params)


@dataclass(frozen=True, config=STRICT)
class Ocr:
    """Score pictures by `text_score` of the text they should show and the text that is read in them, top to bottom.

    The text is the metadata's "text", or what the prompt quotes.  Flow-GRPO reads with PaddleOCR; rapidocr runs the same
    family of models, which come inside its wheel.  As there, text is assumed to be upright.
    """

    confidence: Annotated[float, Field(ge=0, le=1, description="least confidence of a line that is read")] = 0.5
    detect: Annotated[bool, Field(description="look for lines first; without, each picture is read as one line")] = True
    exact: Annotated[bool, Field(description="score 1 where exactly the text is read, else 0")] = False

    @cached_property
    def engine(self) -> Any:
        """Return the engine, loaded at the first use.  Raises UserError if it is not installed."""
        return _engine(self.confidence, self.detect)

    def load(self) -> None:
        """Load the engine."""
        _ = self.engine

    def read(self, images: Tensor) -> list[str | OcrError]:
        """Read the text in pictures [N, 3, H, W]; in the place of one on which the engine fails is an OcrError."""
        bgr = to_bytes(images).flip(1).permute(0, 2, 3, 1).contiguous().numpy()  # the engine expects blue first
        if self.detect:
            return [self._attempt(self._lines, picture) for picture in bgr]
        key = (self.confidence, bgr.tobytes())
        if key not in _LAST:
            found = self._attempt(self._whole, list(bgr))
            _LAST.clear()
            _LAST[key] = [found] * len(bgr) if isinstance(found, OcrError) else [*found]
        return _LAST[key]

    def _lines(self, picture: Any) -> str:
        return "".join(self.engine(picture).txts or ())

    def _whole(self, pictures: list[Any]) -> list[str]:
        lines = self.engine.recognize_txt(pictures)
        return [text if score >= self.confidence else "" for text, score in zip(lines.txts, lines.scores, strict=True)]

    def _attempt(self, read: Callable[[Any], _Read], what: Any) -> _Read | OcrError:
        try:
            return read(what)
        except Exception as error:  # rapidocr, OpenCV and onnxruntime have their own exceptions without a common class
            return OcrError(f"{type(error).__name__}: {error}")

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float | Exception]:
        """Score pictures [N, 3, H, W]."""
        self.load()
        return [self._score(*row) for row in zip(self.read(images), prompts, metadata, strict=True)]

    def _score(self, read: str | OcrError, prompt: str, metadata: dict[str, Any]) -> float | Exception:
        target = metadata.get("text") or quoted(prompt)
        if not isinstance(target, str) or not target.strip():
            return ValueError('the prompt quotes no text: put it in double quotes, or in the metadata as "text"')
        if isinstance(read, OcrError):
            return read
        return float(_plain(target) == _plain(read)) if self.exact else text_score(target, read)
