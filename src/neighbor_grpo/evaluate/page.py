"""The report of an evaluation: result.json, table.md and a page with every picture and its values."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neighbor_grpo.evaluate.ledger import Table
from neighbor_grpo.evaluate.pictures import Pictures
from neighbor_grpo.files import atomic
from neighbor_grpo.prompts.prompt import Prompt
from neighbor_grpo.run.pages import markdown_table, render

_PAGE = Path(__file__).parent / "page.html"
_COMPARED = ("difference", "95 % interval", "win rate", "prompts better : worse", "sign test p")


def table_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Write the result as a table: a head, then a row for each measure."""
    pairs, failed = result.get("against", {}).get("measures", {}), result["failed"]
    head = ["measure", "mean", "95 % interval", *(["failed"] if failed else []), *(_COMPARED if pairs else [])]
    rows = [head]
    for name, value in result["values"].items():
        row = [name, "too many failed" if value is None else f"{value:.4g}"]
        row.append("{:.4g} – {:.4g}".format(*result["intervals"][name]) if name in result["intervals"] else "")
        row += [str(failed.get(name, ""))] if failed else []
        row += _pair_cells(pairs[name]) if name in pairs else []
        rows.append(row + [""] * (len(head) - len(row)))
    return rows


def _pair_cells(pair: Mapping[str, Any]) -> list[str]:
    """Write a comparison by one measure."""
    return [
        f"{pair['difference']:+.4g}",
        f"{pair['low']:+.4g} – {pair['high']:+.4g}",
        f"{pair['win_rate']:.1%}",
        f"{pair['prompts_better']} : {pair['prompts_worse']}",
        f"{pair['p_value']:.2g}",
    ]


def write(
    out: Path, result: Mapping[str, Any], pictures: Pictures, prompts: Sequence[Prompt], tables: Mapping[str, Table]
) -> str:
    """Write result.json, table.md and gallery.html, which links the picture files; return the text of the table."""
    atomic.write(out / "result.json", json.dumps({"version": atomic.VERSION, **result}, indent=2) + "\n")
    rows = table_rows(result)
    atomic.write(out / "table.md", markdown_table(rows))

    def shown(prompt: int, seed: int) -> dict[str, str]:
        values = {name: table.values[prompt] for name, table in tables.items() if table.values.shape[1] == pictures.seeds}
        return {
            "file": Path(os.path.relpath(pictures.file(prompt, seed), out)).as_posix(),
            "caption": ", ".join(f"{name} {value[seed]:.4g}" for name, value in values.items()),
        }

    page = {
        "title": out.name,
        "table": rows,
        "prompts": [
            {"text": prompt.text, "pictures": [shown(p, s) for s in range(pictures.seeds)]} for p, prompt in enumerate(prompts)
        ],
        "width": 192,
        "settings": json.dumps(result["settings"], indent=2),
    }
    atomic.write(out / "gallery.html", render(_PAGE, page))
    return markdown_table(rows)
