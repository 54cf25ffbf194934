"""Every table of docs/results.md comes from the raw numbers beside it."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import results

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TABLES = ("table.md", "table.csv", "results.json")
OF_AN_OLDER_SCHEMA = {"compare"}


@pytest.fixture
def run(monkeypatch):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["results.py", *map(str, arguments)])
        results.main()

    return call


@pytest.mark.parametrize("name", sorted({file.parent.name for file in RESULTS.glob("*/results.json")} - OF_AN_OLDER_SCHEMA))
def test_the_published_tables_are_those_of_the_raw_numbers(tmp_path, run, name):
    again = shutil.copytree(RESULTS / name, tmp_path / name)
    for table in TABLES[:2]:
        (again / table).unlink()
    run(again, "--picture", tmp_path / "curves.png")
    assert all((again / table).read_bytes() == (RESULTS / name / table).read_bytes() for table in TABLES)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_parts_of_a_comparison_are_joined_where_their_settings_agree(tmp_path, run, capsys):
    whole = RESULTS / "bounded"
    saved = json.loads((whole / "results.json").read_text())
    parts = [shutil.copytree(whole, tmp_path / str(n)) for n in range(3)]
    for part, rows, settings in zip(
        parts, (saved["table"][::2], saved["table"][1::2], []), ({}, {"run_dir": "elsewhere"}, {"points": 3}), strict=True
    ):
        curves = {row["run"]: saved["curves"][row["run"]] for row in rows}
        values = {"settings": saved["settings"] | settings, "table": rows, "curves": curves}
        (part / "results.json").write_text(json.dumps(values))
    run(parts[0], "--more", parts[1])
    assert all((parts[0] / table).read_bytes() == (whole / table).read_bytes() for table in TABLES)
    with pytest.raises(SystemExit, match="2"):
        run(parts[0], "--more", parts[2])
    assert "other settings: points" in capsys.readouterr().err
