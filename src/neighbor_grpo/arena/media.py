"""Pictures as raters get them: always PNGs, without anything beside the pixels, so that no file tells of which model it is.

Programs write settings and names of models into PNGs and JPEGs.
"""

import hashlib
import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from neighbor_grpo.errors import UserError
from neighbor_grpo.files.frames import RATE, read_frames

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # that are read
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# chunks that decide what is seen: pixels, frames of an animation, colours, transparency
_SEEN = {
    b"IHDR",
    b"PLTE",
    b"IDAT",
    b"IEND",
    b"acTL",
    b"fcTL",
    b"fdAT",
    b"cHRM",
    b"gAMA",
    b"iCCP",
    b"sBIT",
    b"sRGB",
    b"tRNS",
    b"bKGD",
}


def check_picture(file: Path) -> None:
    """Raise UserError unless a file is a picture of a known format that is whole."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            if _chunks_as_they_are(file.read_bytes()):
                image.verify()  # the checksums of all chunks
                return
        read_frames(file)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{file} cannot be read as a picture ({error}): give PNG, JPEG, WebP or GIF files") from error


def plain_png(file: Path) -> bytes:
    """Return a picture, or a video as an animated PNG, without text, time and camera data; the pixels of a PNG as they are."""
    chunks = _chunks_as_they_are(file.read_bytes())
    return _SIGNATURE + b"".join(chunk for name, chunk in chunks if name in _SEEN) if chunks else _converted(file)


def _chunks_as_they_are(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return name and bytes of the chunks of a PNG; nothing for other formats, and where camera data may turn the picture."""
    chunks = _chunks(data) if data.startswith(_SIGNATURE) else []
    return [] if any(name == b"eXIf" for name, _ in chunks) else chunks


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Take a PNG apart: name and bytes of each chunk."""
    found, at = [], len(_SIGNATURE)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        found.append((data[at + 4 : at + 8], data[at:end]))
        at = end
    return found


@lru_cache(maxsize=64)
def _converted(file: Path) -> bytes:
    return _png(read_frames(file))


@lru_cache(maxsize=64)
def degraded_png(file: Path) -> bytes:
    """Return a copy that anybody finds worse: blurred and noisy, always in the same way."""
    rng = np.random.default_rng(list(hashlib.sha256(file.read_bytes()).digest()))
    return _png([_spoil(frame, rng) for frame in read_frames(file)])


def _spoil(frame: Image.Image, rng: np.random.Generator) -> Image.Image:
    blurred = np.asarray(frame.filter(ImageFilter.GaussianBlur(max(frame.size) / 24)), dtype=float)
    return Image.fromarray((blurred + rng.normal(0, 48, blurred.shape)).clip(0, 255).astype(np.uint8))


def _png(frames: Sequence[Image.Image]) -> bytes:
    first, *others = frames
    written = io.BytesIO()
    if others:
        first.save(written, "PNG", save_all=True, append_images=others, duration=1000 / RATE, compress_level=1)
    else:
        first.save(written, "PNG", compress_level=1)
    return written.getvalue()
