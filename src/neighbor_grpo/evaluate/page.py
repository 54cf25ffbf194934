"""The report of an evaluation: result.json, table.md and a page with every picture and its values."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import numpy as np

from neighbor_grpo.errors import UserError
from neighbor_grpo.evaluate.evaluation import read_tables
from neighbor_grpo.evaluate.measures import Measures
from neighbor_grpo.evaluate.pictures import Pictures
from neighbor_grpo.evaluate.statistics import prompt_means
from neighbor_grpo.files import atomic
from neighbor_grpo.files.ledger import Table
from neighbor_grpo.files.listing import read_listing
from neighbor_grpo.prompts.prompt import Prompt
from neighbor_grpo.run.curves import drawable
from neighbor_grpo.run.pages import markdown_table, render

_PAGE = Path(__file__).parent / "page.html"
_COMPARED = ("difference", "95 % interval", "win rate", "prompts better : worse", "sign test p")


@dataclass(frozen=True)
class Other:
    """Hold the evaluation that an evaluation is compared with, picture by picture."""

    folder: Path
    files: Mapping[tuple[int, int], Path]  # by prompt and seed; none where the evaluation does not list its pictures
    tables: Mapping[str, Table]

    @classmethod
    def read(cls, folder: Path, prompts: int, measures: Measures) -> Self:
        """Read an evaluation that `evaluation.compare_with` has accepted."""
        try:
            files = {(row.number, row.seed): folder / row.file for row in read_listing(folder)}
        except UserError:  # of an older release
            files = {}
        return cls(folder, files, read_tables(folder, prompts, measures))


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
    out: Path,
    result: Mapping[str, Any],
    pictures: Pictures,
    prompts: Sequence[Prompt],
    tables: Mapping[str, Table],
    other: Other | None = None,
    command: str = "",
) -> str:
    """Write result.json, table.md and gallery.html, which links the picture files; return the text of the table.

    command: what makes the evaluation again.
    """
    atomic.write(out / "result.json", json.dumps({"version": atomic.VERSION, **result}, indent=2) + "\n")
    rows = table_rows(result)
    atomic.write(out / "table.md", markdown_table(rows))

    each = {name: table for name, table in tables.items() if table.values.shape[1] == pictures.seeds}
    whole = {name: table for name, table in tables.items() if name not in each and np.ptp(table.values)}  # else of the set

    def shown(prompt: int, seed: int) -> dict[str, Any]:
        files = [pictures.file(prompt, seed)]
        if other and (prompt, seed) in other.files:
            files.insert(0, other.files[prompt, seed])
        return {"files": [_linked(file, out) for file in files], "caption": ", ".join(_values(each, other, prompt, seed))}

    differs = result.get("against", {}).get("differs", {})
    page = {
        "title": out.name,
        "table": rows,
        "names": [other.folder.name if other else "", out.name],
        "prompts": [
            {
                "text": prompt.text,
                "values": ", ".join(_values(whole, other, p, 0)),
                "pictures": [shown(p, s) for s in range(pictures.seeds)],
            }
            for p, prompt in enumerate(prompts)
        ],
        "orders": _orders(each | whole, other),
        "differs": [[key, *map(str, pair)] for key, pair in differs.items()],
        "command": command,
        "settings": json.dumps(result["settings"], indent=2),
    }
    atomic.write(out / "gallery.html", render(_PAGE, page))
    return markdown_table(rows)


def _linked(file: Path, out: Path) -> str:
    """Return the address of a file in a page of the directory `out`."""
    return quote(Path(os.path.relpath(file, out)).as_posix())


def _values(tables: Mapping[str, Table], other: Other | None, prompt: int, seed: int) -> Iterator[str]:
    """Yield what each of these measures says of a picture or prompt, and its difference to the other evaluation's."""
    for name, table in tables.items():
        value = float(table.values[prompt, seed])
        change = value - float(other.tables[name].values[prompt, seed]) if other else np.nan
        yield f"{name} {value:.4g}" + (f" ({change:+.2g})" if isfinite(change) else "") if isfinite(value) else f"{name} –"


def _orders(tables: Mapping[str, Table], other: Other | None) -> dict[str, list[float | None]]:
    """Return by what the page can sort the prompts: the mean of each measure, and its change."""
    means = {name: prompt_means(table.values) for name, table in tables.items()}
    if other:
        means |= {f"change of {name}": mean - prompt_means(other.tables[name].values) for name, mean in means.items()}
    return {name: [drawable(value) for value in mean.tolist()] for name, mean in means.items()}
