"""A comparison's report: table.md, table.csv, results.json, curves.png, pictures.png and one self-contained page."""

import json
from pathlib import Path

import numpy as np
from jinja2 import Environment, select_autoescape
from matplotlib.figure import Figure

from neighbor_grpo.compare.outcome import COSTS, Row, as_csv, as_markdown, outcome, records, target
from neighbor_grpo.compare.settings import Comparison, Entry
from neighbor_grpo.errors import UserError
from neighbor_grpo.files.images import gallery
from neighbor_grpo.run.report import data_url, read_samples

_PAGE = Path(__file__).parent / "page.html"


def write(comparison: Comparison, entries: list[Entry]) -> Path:
    """The report of all finished runs; its page.  Raises UserError when there are none."""
    rows = [row for entry in entries if (row := outcome(entry, comparison))]
    directory = Path(comparison.run_dir)
    if not rows:
        raise UserError(f"no run in {directory} is finished: run the other parts first")
    text, table = as_markdown(rows, comparison), records(rows, comparison)
    settings = comparison.model_dump(mode="json")
    (directory / "table.md").write_text(text, encoding="utf-8")
    (directory / "table.csv").write_text(as_csv(table), encoding="utf-8")
    series = {row.name: {name: values.tolist() for name, values in (row.costs | row.measures).items()} for row in rows}
    results = {"settings": settings, "table": table, "curves": series}
    (directory / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    curves(rows, comparison, directory / "curves.png")
    pictures(rows, directory / "pictures.png")
    done = {row.name: len(row.runs) for row in rows}
    missing = [
        f"{entry.name} ({done.get(entry.name, 0)} of {len(comparison.seeds)} seeds)"
        for entry in entries
        if done.get(entry.name, 0) < len(comparison.seeds)
    ]
    page = (
        Environment(autoescape=select_autoescape(default=True))
        .from_string(_PAGE.read_text())
        .render(
            title=directory.name,
            tables=[_cells(part) for part in text.split("\n\n") if part.startswith("|")],
            target=target(rows, comparison)[1],
            curves=data_url(directory / "curves.png"),
            pictures=data_url(directory / "pictures.png"),
            settings=(directory / "comparison.yaml").read_text(),
            missing=missing,
        )
    )
    (directory / "report.html").write_text(page, encoding="utf-8")
    return directory / "report.html"


def _cells(markdown: str) -> list[list[str]]:
    """Rows of cells of a Markdown table, its rule left out."""
    lines = [line.strip("|").split("|") for line in markdown.strip().splitlines() if not line.startswith("|---")]
    return [[cell.strip().strip("*") for cell in line] for line in lines]


def curves(rows: list[Row], comparison: Comparison, file: Path) -> None:
    """The trained reward against every cost, then each held-out measure against evaluations; bands are ± one std."""
    watched = [name for name in rows[0].measures if not np.array_equal(rows[0].measures[name], rows[0].measures["reward"])]
    panels = [("reward", cost) for cost in COSTS] + [(name, "evaluations") for name in watched]
    height = -(-len(panels) // 3)
    figure = Figure(figsize=(13.5, 3.6 * height), layout="constrained")
    axes = figure.subplots(height, 3, squeeze=False).flatten()
    for axis, (name, cost) in zip(axes, panels, strict=False):
        for n, row in enumerate(rows):
            x, y = row.costs[cost].mean(0), row.measures[name]
            line = axis.plot(x, y.mean(0), marker=".", lw=1.2, ls="-" if n < 10 else "--", label=row.name)[0]
            if len(y) > 1:
                around = y.std(0, ddof=1)
                axis.fill_between(x, y.mean(0) - around, y.mean(0) + around, alpha=0.12, lw=0, color=line.get_color())
        if name == "reward":
            axis.axhline(target(rows, comparison)[0], color="gray", lw=0.8, ls=":")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel(f"{cost} of training" if cost == "seconds" else cost, fontsize=8)
        axis.grid(alpha=0.3)
    for axis in axes[len(panels) :]:
        axis.axis("off")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(rows), 6), fontsize=8)
    figure.savefig(file, dpi=110)


def pictures(rows: list[Row], file: Path) -> None:
    """The same prompts and noise before training and after every method's first seed."""
    samples = rows[0].runs[0] / "samples"
    prompts = (samples / "prompts.txt").read_text(encoding="utf-8").splitlines()
    columns = {"before": read_samples(samples / "000000")}
    for row in rows:
        last = max(path for path in (row.runs[0] / "samples").iterdir() if path.is_dir())
        columns[row.name] = read_samples(last)
    gallery({title: images[:, :2] for title, images in columns.items()}, prompts).save(file)
