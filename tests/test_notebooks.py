"""The notebooks are valid, have no outputs, and their commands are those of this version."""

import ast
import json
import re
import shlex
from pathlib import Path

import pytest

from neighbor_grpo.commands.main import parser
from neighbor_grpo.config import load_config

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def cells(path: Path, kind: str = "code") -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def commands(path: Path) -> list[list[str]]:
    """The arguments of every neighbor-grpo in a notebook."""
    lines = re.findall(r"^!neighbor-grpo (.*)$", "\n".join(cells(path)), re.M)
    return [shlex.split(line) for line in lines]


def files(path: Path) -> dict[str, str]:
    """The files that a notebook writes."""
    found = (re.match(r"%%writefile (\S+)\n(.*)", text, re.S) for text in cells(path))
    return {match[1]: match[2] for match in found if match}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_has_no_outputs(path):
    book = json.loads(path.read_text())
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5) and book["metadata"]["kernelspec"]["name"] == "python3"
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    for cell in book["cells"]:
        wanted = {"cell_type", "id", "metadata", "source"} | (
            {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        )
        assert cell.keys() == wanted and cell.get("outputs", []) == [] and cell.get("execution_count") is None
        assert all(line.endswith("\n") for line in cell["source"][:-1])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_python_of_a_notebook_parses(path):
    for text in cells(path):
        if not text.startswith("%%writefile"):
            ast.parse("\n".join(line for line in text.splitlines() if not line.startswith(("!", "%"))))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_commands_of_a_notebook_are_accepted(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in files(path).items():
        Path(name).write_text(text)
    known, read, runs = parser(), 0, set()
    assert commands(path)
    for words in commands(path):
        if words == ["--version"]:
            continue
        arguments = known.parse_args(words)
        items = getattr(arguments, "config", [])
        if isinstance(items, list) and (items or getattr(arguments, "preset", [])) and not set(items) & runs:
            settings = [item for item in items if "=" in item]
            config = load_config([item for item in items if "=" not in item], settings, arguments.preset)
            runs.add(config.run_dir)
            read += 1
        for run in (getattr(arguments, "run", None), getattr(arguments, "resume", None)):
            assert run is None or str(run) in runs  # what an earlier command has trained
    assert read
