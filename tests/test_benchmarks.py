"""Every program of benchmarks/ and tools/ begins: what it takes from the package and from the tests is there."""

import importlib
import json
from pathlib import Path

import equal_score
import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = sorted(file.stem for place in ("benchmarks", "tools") for file in (ROOT / place).glob("*.py"))


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_finds_what_it_imports(program):
    assert importlib.import_module(program).__doc__


@pytest.mark.parametrize(
    "file", sorted((ROOT / "benchmarks" / "results").rglob("results.json")), ids=lambda file: file.parent.name
)
def test_equal_scores_are_read_from_every_comparison_that_is_kept(file, capsys, monkeypatch):
    rows = json.loads(file.read_text())["curves"]
    monkeypatch.setattr("sys.argv", ["equal_score.py", str(file), "--levels", "1.1"])
    equal_score.main()
    tables = capsys.readouterr().out.split("At a reward of")
    assert len(tables) == 2
    assert all(f"| {run} |" in table for run in rows for table in tables)


def test_a_gain_is_the_mean_over_seeds_with_the_interval_of_student():
    curves = {"a": {"reward": [[1.0, 2.0], [1.0, 4.0]], "strict": [[0.5, 0.5], [0.5, 1.5]]}}
    # gains 1 and 3 of the reward: 2 ± 12.7062 · 1, and 0 and 1 of strict: 0.5 ± 12.7062 / 2
    line = equal_score.gains(curves, ["reward", "strict"]).splitlines()[-1]
    assert line == "| a | 2 | +2 (-10.71 – +14.71) | +0.5 (-5.853 – +6.853) |"


@pytest.mark.slow
def test_the_benchmark_of_true_sizes_measures_a_tiny_model(capsys, monkeypatch):
    import true_size

    monkeypatch.setattr("sys.argv", ["true_size.py", "--tiny", "--iterations", "1", "neighbor_late"])
    true_size.main()
    row = capsys.readouterr().out.strip().splitlines()[-1].split("|")
    assert row[1].strip() == "flux_dev, neighbor_late"
    assert int(row[2]) in [k + 1 + 12 * (8 - k - 1) for k in range(2, 7)]  # a group of 12 parts after k of 8 transitions
    assert int(row[3]) == 4
