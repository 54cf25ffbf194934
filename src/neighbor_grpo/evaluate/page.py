"""What an evaluation shows: a table in words and a page with every picture and its scores."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, select_autoescape

from neighbor_grpo.evaluate.pictures import Pictures
from neighbor_grpo.prompts.reading import Prompt

_PAGE = Path(__file__).parent / "page.html"


def rows(found: Mapping[str, Any]) -> list[list[str]]:
    """The table: a head, then a row for each measure."""
    against = found.get("against", {}).get("measures")
    head = ["measure", "mean", "95 % interval", *(["failed"] if found["failed"] else [])]
    head += ["difference", "95 % interval", "win rate", "prompts better : worse", "sign test p"] if against else []
    table = [head]
    for name, value in found["values"].items():
        low, high = found["intervals"].get(name, (None, None))
        row = [name, "too many failed" if value is None else f"{value:.4g}", "" if low is None else f"{low:.4g} – {high:.4g}"]
        row += [str(found["failed"].get(name, ""))] if found["failed"] else []
        if against and name in against:
            pair = against[name]
            row += [
                f"{pair['difference']:+.4g}",
                f"{pair['low']:+.4g} – {pair['high']:+.4g}",
                f"{pair['win_rate']:.1%}",
                f"{pair['prompts_better']} : {pair['prompts_worse']}",
                f"{pair['p_value']:.2g}",
            ]
        table.append(row + [""] * (len(head) - len(row)))
    return table


def markdown(table: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([lines[0], "|---" * len(table[0]) + "|", *lines[1:]]) + "\n"


def write(
    out: Path,
    found: Mapping[str, Any],
    pictures: Pictures,
    prompts: Sequence[Prompt],
    tables: Mapping[str, tuple[np.ndarray, list[str]]],
) -> str:
    """result.json, table.md, whose text is returned, and gallery.html, which shows the files where they lie."""
    (out / "result.json").write_text(json.dumps(found, indent=2) + "\n")
    table = rows(found)
    (out / "table.md").write_text(markdown(table), encoding="utf-8")
    shown = [
        {
            "text": prompt.text,
            "pictures": [
                {
                    "file": Path(os.path.relpath(pictures.file(p, s), out)).as_posix(),
                    "caption": ", ".join(
                        f"{name} {values[p, s]:.4g}"
                        for name, (values, _) in tables.items()
                        if values.shape[1] == pictures.seeds
                    ),
                }
                for s in range(pictures.seeds)
            ],
        }
        for p, prompt in enumerate(prompts)
    ]
    page = (
        Environment(autoescape=select_autoescape(default=True))
        .from_string(_PAGE.read_text())
        .render(
            title=out.name,
            table=table,
            prompts=shown,
            width=192,
            settings=json.dumps(found["settings"], indent=2),
        )
    )
    (out / "gallery.html").write_text(page, encoding="utf-8")
    return markdown(table)
