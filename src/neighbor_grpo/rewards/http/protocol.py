"""What a scorer's client and server say to each other; docs/scorer-server.md has it in words.

A request is a JSON object of lists "images" (base64 of 8-bit RGB PNG), "prompts" and "metadata"; the answer one of "scores",
"reasons" and "scorer".  Everything here works in memory, and whatever breaks the format is a ValueError that says how.
"""

import base64
import io
import json
import struct
from collections.abc import Sequence
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
_HEADER = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"  # of every PNG, before its width and height


class Mismatch(ValueError):
    """Lists of a request that differ in length."""


class Unscored(Exception):
    """A picture to which the server gave no score, for the reason it says."""


def png(image: Tensor) -> bytes:
    """A picture [3, H, W] in [0, 1] as an 8-bit PNG: pixels are rounded to 1/255, as in a saved picture.

    ValueError for anything that is no such picture.
    """
    buffer = io.BytesIO()
    to_pil(check_pictures(image[None])[0]).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def item(image: Tensor, prompt: str, metadata: dict) -> tuple[str, str, dict]:
    """One picture's place in a request; ValueError for a picture or metadata that cannot be sent."""
    try:
        json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the metadata is no JSON: {error}") from error
    return base64.b64encode(png(image)).decode(), prompt, metadata


def request(items: Sequence[tuple[str, str, dict]]) -> bytes:
    """The body of POST /score."""
    images, prompts, metadata = zip(*items, strict=True)
    return json.dumps({"images": images, "prompts": prompts, "metadata": metadata}, allow_nan=False).encode()


def read_request(body: bytes, max_pixels: int = MAX_PIXELS) -> tuple[Tensor, list[str], list[dict]]:
    """Images [N, 3, H, W] float32 in [0, 1], N prompts and N metadata.  Mismatch where the lengths differ."""
    data = read_object(body)
    texts, prompts, metadata = (
        _list(data, name, kind) for name, kind in (("images", str), ("prompts", str), ("metadata", dict))
    )
    if not len(texts) == len(prompts) == len(metadata):
        raise Mismatch(f"{len(texts)} images, {len(prompts)} prompts and {len(metadata)} metadata: they must be as many")
    if not texts:
        raise ValueError("images is empty")
    files = [_base64(text, n) for n, text in enumerate(texts)]
    sizes = [_size(file, n) for n, file in enumerate(files)]
    for n, (width, height) in enumerate(sizes):
        if (width, height) != sizes[0]:
            raise ValueError(f"images[{n}] is {width} x {height} and images[0] {sizes[0][0]} x {sizes[0][1]}: send equal sizes")
    pixels = len(sizes) * sizes[0][0] * sizes[0][1]
    if not 0 < pixels <= max_pixels:  # by the headers, before anything is unpacked
        raise ValueError(f"the images have {pixels} pixels together, not 1 to {max_pixels}")
    return torch.stack([_pixels(file, n, sizes[0]) for n, file in enumerate(files)]), prompts, metadata


def answer(scores: Scores, scorer: dict[str, Any], reasons: dict[int, str]) -> bytes:
    """The body of the answer; scorer says who scored, reasons why pictures have no score."""
    values = [value if isfinite(value) else None for value in scores.values.tolist()]
    named = {str(n): reason for n, reason in reasons.items()}
    return json.dumps({"scores": values, "reasons": named, "scorer": scorer}, allow_nan=False).encode()


def read_answer(body: bytes, n: int) -> list[float | Exception]:
    """n scores, Unscored in the place of each null."""
    data = read_object(body)
    scores, reasons = _list(data, "scores", object), data.get("reasons", {})
    if len(scores) != n:
        raise ValueError(f"{len(scores)} scores for {n} pictures")
    if not isinstance(reasons, dict):
        raise ValueError("reasons is no object")
    return [
        Unscored(str(reasons.get(str(k), "the server gave no reason"))) if value is None else _number(value, k)
        for k, value in enumerate(scores)
    ]


def read_object(body: bytes) -> dict[str, Any]:
    """A JSON object; literals such as NaN, which Python would let pass, are none."""

    def refuse(literal: str) -> None:
        raise ValueError(f"{literal} is no JSON")

    try:
        data = json.loads(body, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"malformed JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError("the JSON is no object")
    return data


def _list(data: dict[str, Any], name: str, kind: type) -> list:
    value = data.get(name)
    if not isinstance(value, list):
        raise ValueError(f"{name} is no list")
    for n, entry in enumerate(value):
        if not isinstance(entry, kind):
            raise ValueError(f"{name}[{n}] is no {'string' if kind is str else 'object'}")
    return value


def _number(value: Any, n: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"scores[{n}] is neither a number nor null")
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
        raise ValueError(f"images[{n}] is no base64") from error


def _size(file: bytes, n: int) -> tuple[int, int]:
    """Width and height by the file's header."""
    if not file.startswith(_HEADER) or len(file) < 26:
        raise ValueError(f"images[{n}] is no PNG")
    width, height, depth, colour = struct.unpack(">IIBB", file[16:26])
    if (depth, colour) != (8, 2):
        raise ValueError(f"images[{n}] is no 8-bit RGB PNG without alpha")
    return width, height


def _pixels(file: bytes, n: int, size: tuple[int, int]) -> Tensor:
    try:
        with Image.open(io.BytesIO(file), formats=["PNG"]) as image:
            if image.size != size:  # a second header is not to get round the bound on pixels
                raise ValueError("two sizes")
            pixels = np.array(image)
    except Exception as error:  # a decoder may raise anything at bytes that are none of its own
        raise ValueError(f"images[{n}] is a damaged PNG") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
