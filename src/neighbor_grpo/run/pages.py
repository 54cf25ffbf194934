"""Pages and tables: templates filled in, PNGs written into a page, rows of cells as Markdown.

All pages share web/: a frame, a stylesheet and the charts (uPlot, MIT licence, as published).  A page holds everything it
shows, so that it opens from any place and asks no other host.
"""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

_WEB = Path(__file__).parent / "web"


def render(template: Path, values: Mapping[str, Any]) -> str:
    """Fill in a template; values are escaped in .html, not in .md.  Raises UndefinedError for a missing value."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, _WEB]),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["nonce"] = ""  # of scripts and styles, for a page that a server sends under a strict policy
    environment.globals["web"] = lambda name: Markup((_WEB / name).read_text(encoding="utf-8"))  # as it is, not escaped
    return environment.get_template(template.name).render(values)


def data_url(file: Path) -> str:
    """Encode a PNG as a URL, so that a page contains it."""
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown; the first row is the head."""
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body]) + "\n"
