"""What a run shows: a live display on a terminal, a line per iteration elsewhere, nothing on other ranks."""

import io

import pytest
from rich.console import Console

from neighbor_grpo import console
from neighbor_grpo.training.display import Display, LiveDisplay, PlainDisplay, display_of, progress

FIGURES = {
    "reward/scenes": 0.51234,
    "spread/scenes": 0.1,
    "failed/scenes": 2,
    "ratio/noise_floor": 1e-6,
    "ratio/clipped": 0.25,
    "grad_norm": 0.031,
    "time/rollout": 1.5,
    "time/update": 0.5,
}
BEFORE, AFTER = (
    {"eval/scenes": 0.5, "eval/diversity": 0.2, "eval_spread/scenes": 0.1},
    {"eval/scenes": 0.625, "eval/diversity": 0.15},
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def _no_ci(monkeypatch):
    for name in ("CI", "NO_COLOR", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_a_line_per_iteration():
    line = progress(3, 10, FIGURES, 2.0)
    assert line == (
        "3/10  scenes 0.5123 ±0.100 (2 not scored)  clipped 0.25  |g| 0.031  2.00 s/it (rollout 1.50 update 0.50)  ETA 0:14"
    )


def test_a_method_without_ratios_is_shown_without_them():
    assert progress(1, 2, {"reward/a": 1.0, "other": 3}, 1.0) == "1/2  a 1.0000  1.00 s/it ()  ETA 0:01"


def test_elsewhere_it_prints_lines():
    stream = io.StringIO()
    with PlainDisplay(stream) as shown:
        shown.say("plan")
        shown.evaluation(0, {"eval/scenes": 0.5})
        shown.phase("rollout")
        shown.iteration(1, 2, FIGURES, 2.0)
    assert stream.getvalue().splitlines() == ["plan", "iteration 0: eval/scenes 0.5", progress(1, 2, FIGURES, 2.0)]


def test_on_a_terminal_it_is_drawn_in_place():
    stream = io.StringIO()
    with LiveDisplay(Console(file=stream, force_terminal=True, width=100)) as shown:
        shown.before(BEFORE)
        shown.say("[plan] stays")
        shown.phase("rollout")
        shown.iteration(3, 10, FIGURES, 2.0)
        shown.evaluation(3, AFTER)
    text = stream.getvalue()
    assert "[plan] stays\n" in text.replace("\r", "") and "\x1b[" in text
    last = Console(file=io.StringIO(), width=100)
    last.print(shown._drawn())
    drawn = last.file.getvalue()
    assert "rollout" in drawn and "3/10" in drawn and "2.00 s/it" in drawn
    rows = [" ".join(line.split()) for line in drawn.splitlines()]
    assert {"scenes 0.5123 ±0.100 (2 not scored)", "noise floor 1e-06", "clipped 0.25"} <= set(rows)
    assert {"eval scenes 0.625 +0.125", "eval diversity 0.15 -0.05"} <= set(rows)


def test_the_stream_and_the_rank_choose(monkeypatch):
    assert type(display_of(True, io.StringIO())) is PlainDisplay
    assert type(display_of(True, Terminal())) is LiveDisplay
    assert type(display_of(False, Terminal())) is Display
    for name, value in (("NO_COLOR", "1"), ("CI", "true"), ("TERM", "dumb"), ("RANK", "1")):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            assert type(display_of(True, Terminal())) is PlainDisplay


def test_other_ranks_are_silent(capsys):
    with display_of(False) as shown:
        shown.say("x")
        shown.evaluation(0, BEFORE)
        shown.iteration(1, 2, FIGURES, 1.0)
    assert capsys.readouterr() == ("", "")


def test_a_bar_is_drawn_on_a_terminal_alone_and_yields_every_item():
    for stream, drawn in ((Terminal(), True), (io.StringIO(), False)):
        assert list(console.bar(range(3), "encoding prompts", stream)) == [0, 1, 2]
        assert ("encoding prompts" in stream.getvalue()) is drawn
    with console.drawing():  # a display is there already
        assert list(console.bar(range(3), "encoding prompts", stream := Terminal())) == [0, 1, 2]
    assert stream.getvalue() == ""
    with console.working("loading weights", stream := Terminal()):
        pass
    assert stream.getvalue().startswith("loading weights ...")
