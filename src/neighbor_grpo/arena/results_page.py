"""The report of a study: table.md, votes.csv, results.json and one self-contained page."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neighbor_grpo.arena.results import Results, record
from neighbor_grpo.arena.results_tables import as_markdown, percent, sections, votes_csv
from neighbor_grpo.arena.win_rates import WinRate
from neighbor_grpo.files import atomic
from neighbor_grpo.run.pages import render

_PAGE = Path(__file__).parent / "results.html"


def write(out: Path, results: Results, title: str) -> Path:
    """Write the report into the directory `out`, which appears whole or not at all, and return its page."""
    page = {
        "title": title,
        "votes": len(results.counted),
        "raters": len({vote.rater for vote in results.counted}),
        "figures": [{"question": one.question, "bars": [_bar(r) for r in one.rates if r.votes]} for one in results.answers],
        "sections": list(sections(results)),
    }
    with atomic.directory(out, "results of a study") as aside:
        atomic.write(aside / "table.md", as_markdown(results))
        atomic.write(aside / "votes.csv", votes_csv(results))
        atomic.write(aside / "results.json", json.dumps({"version": atomic.VERSION, **record(results)}, indent=1) + "\n")
        atomic.write(aside / "results.html", render(_PAGE, page))
    return out / "results.html"


def _bar(rate: WinRate) -> Mapping[str, Any]:
    """Return the answers on a pair of models as parts of a bar, as in the paper's figure 7."""
    parts = [
        ("first", rate.first, rate.wins),
        ("tie", "tie", rate.ties),
        ("bad", "both bad", rate.bad),
        ("second", rate.second, rate.losses),
    ]
    return {
        "first": rate.first,
        "second": rate.second,
        "rate": percent(rate.rate),
        "parts": [{"kind": kind, "name": name, "share": count / rate.votes} for kind, name, count in parts if count],
    }
