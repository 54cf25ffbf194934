"""Texts from anywhere, as they reach a terminal: shown, never obeyed, and never endless."""

import io
import string
import subprocess
import sys

import pytest
from rich.console import Console

from neighbor_grpo import console
from neighbor_grpo.cli import main
from neighbor_grpo.training.display import LiveDisplay, PlainDisplay

EVIL = "\x1b[2J\x1b]0;title\x07\x00\x7f\x9b31m\u202eabc\u2028\ud800 ü 漢 [/red]"


def test_one_line_is_printable_and_short_whatever_comes():
    every = "".join(map(chr, range(0x3000))) + "\U000e0001\U0010ffff\ud800"
    for text in (EVIL, every, EVIL * 10_000, "", "\n", "x" * 10**6, "\x1b" * 10**6):
        line = console.one_line(text)
        assert (line.isprintable() or line == "") and len(line) <= 2000
    assert console.one_line("a\n  b\tc") == "a b c"
    assert console.one_line("ü 漢 ±") == "ü 漢 ±"
    long = console.one_line("begin " + "x" * 9999 + " remedy", 50)
    assert long.startswith("begin ") and long.endswith(" remedy") and len(long) <= 50


def test_a_library_without_a_handler_gives_no_advice_but_its_errors():
    program = (
        "import logging; from neighbor_grpo.console import silence_libraries as quiet; quiet(); "
        "log = logging.getLogger('some.library'); log.warning('advice'); log.error('fault')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "fault\n")


def test_safe_lines_keeps_lines_and_columns():
    assert console.safe_lines("a  b\n\n  c") == "a  b\n\n  c"
    assert console.safe_lines("a\tb") == "a       b"
    lines = console.safe_lines(f"{EVIL}\n{string.printable}").split("\n")
    assert len(lines) == 1 + 1 + string.printable.count("\n") and all(line.isprintable() for line in lines)


class Broken(Exception):
    def __str__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError(EVIL), "ValueError: "),
        (KeyError("x"), "KeyError: 'x'"),
        (TimeoutError(), "TimeoutError"),
        (Broken(), "Broken"),
    ],
)
def test_reasons_of_exceptions(error, text):
    reason = console.reason_of(error)
    assert reason.startswith(text) and reason.isprintable()


def test_every_display_says_it_safely():
    plain, terminal = io.StringIO(), io.StringIO()
    PlainDisplay(plain).say(EVIL + "\nsecond")
    assert plain.getvalue().splitlines()[-1] == "second" and plain.getvalue().replace("\n", "").isprintable()
    live = LiveDisplay(Console(file=terminal, width=200))
    live.say(EVIL)
    assert "\x1b" not in terminal.getvalue() and "[/red]" in terminal.getvalue()
    live.iteration(1, 2, {"reward/[/x]/[bold]r.py:f": 1.0}, 1.0)  # not markup
    live.terminal.print(live._drawn())
    assert "[/x]/[bold]r.py:f" in terminal.getvalue()


@pytest.mark.parametrize("name", [f"{EVIL}.py:f", "x" * 100_000, f"a{EVIL}"])
def test_mistakes_of_commands_are_one_safe_line(name, capsys):
    assert main(["rewards", "check", name]) == 2
    line = capsys.readouterr().err
    assert line.endswith("\n") and line[:-1].isprintable() and len(line) < 2100
