"""Pages and tables: templates filled in, pictures written into a page, rows of cells as Markdown.

All pages share web/: a frame, a stylesheet, macros for what several show, and the charts (uPlot, MIT licence, as published).  A
page holds everything it shows, so that it opens from any place and asks no other host.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from PIL import Image

from neighbor_grpo.files.frames import RATE, read_frames

_WEB = Path(__file__).parent / "web"
MOST = 12 << 20  # bytes of the pictures of a page; a third more as text
_SIDES = (1024, 512, 256, 128, 64)  # pixels that a larger picture is scaled down to


def render(template: Path, values: Mapping[str, Any]) -> str:
    """Fill in a template; values are escaped in .html, not in .md.  Raises UndefinedError for a missing value."""
    return _environment(template.parent).get_template(template.name).render(values)


def macro(file: str, name: str) -> Callable[..., str]:
    """Return a macro of a file in web/, which writes a part of a page."""
    return getattr(_environment(_WEB).get_template(file).module, name)


@cache
def _environment(folder: Path) -> Environment:
    environment = Environment(
        loader=FileSystemLoader([folder, _WEB]),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["nonce"] = ""  # of scripts and styles, for a page that a server sends under a strict policy
    environment.globals["web"] = lambda name: Markup((_WEB / name).read_text(encoding="utf-8"))  # as it is, not escaped
    return environment


def data_url(file: Path) -> str:
    """Encode a PNG as a URL, so that a page contains it."""
    return _url("png", file.read_bytes())


def data_urls(files: Sequence[Path], most: int = MOST) -> tuple[dict[Path, str], int]:
    """Encode PNGs as URLs of at most `most` bytes together; return them, and how many had to be compressed for it."""
    if sum(file.stat().st_size for file in files) <= most:
        return {file: data_url(file) for file in files}, 0
    share = most // len(files)
    small = {file for file in files if file.stat().st_size <= share}
    return {file: data_url(file) if file in small else _compressed(file, share) for file in files}, len(files) - len(small)


def _compressed(file: Path, most: int) -> str:
    """Encode a picture with losses, scaled down as far as it must be, as a URL of at most `most` bytes if a picture can be."""
    frames, data = read_frames(file), b""
    for side in _SIDES:
        shown = [_scaled(frame, side) for frame in frames]
        written = io.BytesIO()
        shown[0].save(written, "WEBP", quality=80, save_all=len(shown) > 1, append_images=shown[1:], duration=1000 // RATE)
        data = written.getvalue()
        if len(data) <= most:
            break
    return _url("webp", data)


def _scaled(frame: Image.Image, side: int) -> Image.Image:
    frame = frame.copy()
    frame.thumbnail((side, side))
    return frame


def _url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown; the first row is the head."""
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body]) + "\n"
