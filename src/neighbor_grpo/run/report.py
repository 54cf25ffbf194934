"""The report of a run: samples/before_after.png and one self-contained page, made from the files of the run."""

from pathlib import Path

from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic
from neighbor_grpo.run import curves, files
from neighbor_grpo.run.pages import data_urls, macro, render
from neighbor_grpo.run.samples import PICTURES, draw_before_after
from neighbor_grpo.run.view import read_view

PAGE = Path(__file__).parent / "page.html"


def write(run: Path) -> Path:
    """Write samples/before_after.png and report.html from what the run has recorded; return the page."""
    view = read_view(run)
    if not view.lines:
        raise UserError(f"{run} has not recorded anything yet: resume it with {files.resume_command(run)}")
    draw_before_after(run, run / PICTURES)
    addresses, compressed = data_urls(view.pictures)
    charts = {"curves": curves.thinned(curves.charts(view.lines)), "run0-against": view.against}
    parts = view.parts(addresses.__getitem__)
    body = macro("run.html", "body")([view], [parts], curves.is_long(view.lines), compressed)
    title = f"{view.name}: {view.lines[-1]['iteration']} iterations"
    atomic.write(run / "report.html", render(PAGE, {"title": title, "body": body, "charts": charts}))
    return run / "report.html"
