"""The format of requests and answers between a scorer's client and server; docs/scorer-server.md describes it.

A request is a JSON object with the lists "images" (base64 of 8-bit RGB PNG), "prompts" and "metadata".  The answer is a JSON
object with "scores", "reasons" and "scorer".  All functions work in memory and raise ValueError for a malformed input.
"""

import base64
import io
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from neighbor_grpo.files.images import to_pil
from neighbor_grpo.rewards.learned.images import check_pictures
from neighbor_grpo.rewards.score import Scores

MAX_PIXELS = 2**26  # of all the pictures of a request: 64 of 1024 x 1024
MAX_PICTURE = 2**24  # of one picture: 4096 x 4096
_MAX_SIGNS = 500_000  # brackets, commas, colons and quotes of a JSON text: those of 50,000 pictures
_MAX_ESCAPED = 1 << 16  # bytes of one text with escapes, in a long JSON text
_MAX_TEXT = 16 << 20  # bytes of a request beside its images
_HEADER = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"  # of every PNG, before its width and height


Item = tuple[str, str, dict[str, Any]]  # a picture's place in a request: base64, prompt, metadata


class LengthError(ValueError):
    """Report lists of different lengths in a request."""


class UnscoredError(Exception):
    """Report why the server did not score a picture."""


def png(image: Tensor) -> bytes:
    """Encode a picture [3, H, W] in [0, 1] as an 8-bit PNG; pixels are rounded to 1/255, as in a saved picture.

    Raises ValueError for any other tensor.
    """
    buffer = io.BytesIO()
    to_pil(check_pictures(image[None])[0]).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def item(image: Tensor, prompt: str, metadata: dict[str, Any]) -> Item:
    """Encode one picture for a request.  Raises ValueError if the picture or the metadata cannot be sent."""
    try:
        json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the metadata cannot be written as JSON ({error}): use numbers, strings, lists and dicts") from error
    return base64.b64encode(png(image)).decode(), prompt, metadata


def request(items: Sequence[Item]) -> bytes:
    """Write the body of POST /score."""
    images, prompts, metadata = zip(*items, strict=True)
    return json.dumps({"images": images, "prompts": prompts, "metadata": metadata}, allow_nan=False).encode()


@dataclass(frozen=True)
class Request:
    """Hold a request whose pictures are not decoded yet; the headers of their files are checked."""

    files: list[bytes]  # PNG
    width: int
    height: int
    prompts: list[str]
    metadata: list[dict[str, Any]]

    def parts(self, pixels: int) -> Iterator[slice]:
        """Divide the pictures into parts of at most so many pixels, or of one picture."""
        size = max(1, pixels // (self.width * self.height))
        return (slice(n, n + size) for n in range(0, len(self.files), size))

    def images(self, rows: slice = slice(None)) -> Tensor:
        """Decode pictures: [n, 3, H, W] float32 in [0, 1].  Raises ValueError if one of them is damaged."""
        numbers = range(len(self.files))[rows]
        pixels = torch.empty(len(numbers), 3, self.height, self.width)  # filled one by one: floats take 4 times a file's pixels
        for place, n in zip(pixels, numbers, strict=True):
            place.copy_(_pixels(self.files[n], n, (self.width, self.height)))
        return pixels.div_(255)


def read_request(body: bytes | bytearray, max_pixels: int = MAX_PIXELS, max_picture: int = MAX_PICTURE) -> Request:
    """Read a request of N pictures with N prompts and N metadata.

    Raises LengthError if the lengths differ, ValueError for any other fault.
    """
    data = read_object(body)
    texts, prompts, metadata = (
        _list(data, name, kind) for name, kind in (("images", str), ("prompts", str), ("metadata", dict))
    )
    if not len(texts) == len(prompts) == len(metadata):
        raise LengthError(f"{len(texts)} images, {len(prompts)} prompts and {len(metadata)} metadata: send equal numbers")
    if not texts:
        raise ValueError("images is empty: send 1 or more")
    if len(body) - sum(map(len, texts)) > _MAX_TEXT:
        raise ValueError(f"there are more than {_MAX_TEXT} bytes beside the images: send shorter prompts and metadata")
    files = [_base64(text, n) for n, text in enumerate(texts)]
    sizes = [_size(file, n) for n, file in enumerate(files)]
    (width, height), pixels = sizes[0], sizes[0][0] * sizes[0][1]
    for n, size in enumerate(sizes):
        if size != sizes[0]:
            raise ValueError(f"images[{n}] is {size[0]} x {size[1]} and images[0] {width} x {height}: send equal sizes")
    # checked by the headers, before anything is unpacked
    if pixels > max_picture:
        raise ValueError(f"the images have {pixels} pixels each: send at most {max_picture}")
    if not 0 < len(sizes) * pixels <= max_pixels:
        raise ValueError(f"the images have {len(sizes) * pixels} pixels together: send 1 to {max_pixels}")
    return Request(files, width, height, prompts, metadata)


def answer(scores: Scores, scorer: dict[str, Any], reasons: dict[int, str]) -> bytes:
    """Write the body of the answer; `scorer` describes who scored, `reasons` why pictures have no score, by index."""
    values = [value if isfinite(value) else None for value in scores.values.tolist()]
    named = {str(n): reason for n, reason in reasons.items()}
    return json.dumps({"scores": values, "reasons": named, "scorer": scorer}, allow_nan=False).encode()


def read_answer(body: bytes, n: int) -> list[float | Exception]:
    """Read n scores, with an UnscoredError in the place of each null."""
    data = read_object(body)
    scores, reasons = _list(data, "scores", object), data.get("reasons", {})
    if len(scores) != n:
        raise ValueError(f"{len(scores)} scores for {n} pictures")
    if not isinstance(reasons, dict):
        raise ValueError("reasons is not an object")
    return [
        UnscoredError(str(reasons.get(str(k), "the server gave no reason"))) if value is None else _number(value, k)
        for k, value in enumerate(scores)
    ]


def read_object(body: bytes | bytearray) -> dict[str, Any]:
    """Read a JSON object.  Raises ValueError for anything else, also for NaN and Infinity, which Python would accept.

    What would take many times its bytes once it is parsed is refused before: too many objects, and long texts in which one
    character makes all others take 4 bytes each.
    """
    if sum(map(body.count, b'[{,:"')) > _MAX_SIGNS:
        raise ValueError(f"the JSON has more than {_MAX_SIGNS} brackets, commas, colons and quotes: send less at once")
    if len(body) > _MAX_TEXT:
        if not body.isascii():
            raise ValueError(f"JSON of more than {_MAX_TEXT} bytes must be ASCII: write other characters as \\u escapes")
        if any(len(text) > _MAX_ESCAPED and b"\\" in text for text in body.split(b'"')):
            raise ValueError(f"a text of more than {_MAX_ESCAPED} bytes has escapes: send shorter texts")

    def refuse(literal: str) -> None:
        raise ValueError(f"{literal} is not allowed in JSON")

    try:
        data = json.loads(body, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("malformed JSON: nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"malformed JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError("the JSON is not an object")
    return data


def _list(data: dict[str, Any], name: str, kind: type) -> list:
    value = data.get(name)
    if not isinstance(value, list):
        raise ValueError(f"{name} is not a list")
    for n, entry in enumerate(value):
        if not isinstance(entry, kind):
            raise ValueError(f"{name}[{n}] is not {'a string' if kind is str else 'an object'}")
    return value


def _number(value: Any, n: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"scores[{n}] is not a number or null")
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    if not isfinite(number):
        raise ValueError(f"scores[{n}] is not finite")
    return number


def _base64(text: str, n: int) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError(f"images[{n}] is not base64") from error


def _size(file: bytes, n: int) -> tuple[int, int]:
    """Read width and height from the file's header."""
    if not file.startswith(_HEADER) or len(file) < 26:
        raise ValueError(f"images[{n}] is not a PNG")
    width, height, depth, colour = struct.unpack(">IIBB", file[16:26])
    if (depth, colour) != (8, 2):
        raise ValueError(f"images[{n}] is not an 8-bit RGB PNG without alpha")
    return width, height


def _pixels(file: bytes, n: int, size: tuple[int, int]) -> Tensor:
    """Decode a file to [3, H, W] uint8."""
    try:
        with Image.open(io.BytesIO(file), formats=["PNG"]) as image:
            if image.size != size:  # a second header must not bypass the limit on pixels
                raise ValueError("two sizes")
            pixels = np.array(image)
    except Exception as error:  # Pillow raises errors of many kinds for damaged files
        raise ValueError(f"images[{n}] is a damaged PNG") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)
