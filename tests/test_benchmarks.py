"""Every program of benchmarks/ and tools/ begins: what it takes from the package and from the tests is there."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = sorted(file.stem for place in ("benchmarks", "tools") for file in (ROOT / place).glob("*.py"))


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_finds_what_it_imports(program):
    assert importlib.import_module(program).__doc__


@pytest.mark.slow
def test_the_benchmark_of_true_sizes_measures_a_tiny_model(capsys, monkeypatch):
    import true_size

    monkeypatch.setattr("sys.argv", ["true_size.py", "--tiny", "--iterations", "1", "neighbor_late"])
    true_size.main()
    row = capsys.readouterr().out.strip().splitlines()[-1].split("|")
    assert row[1].strip() == "flux_dev, neighbor_late"
    assert int(row[2]) in [k + 1 + 12 * (8 - k - 1) for k in range(2, 7)]  # a group of 12 parts after k of 8 transitions
    assert int(row[3]) == 4
