"""The shipped configurations train to the same measures as before; minutes each (pytest -m slow)."""

import json
from pathlib import Path

import pytest

from neighbor_grpo.compare.runs import train, with_rate
from neighbor_grpo.compare.settings import load_comparison, read_comparison
from neighbor_grpo.run import files

REFERENCE = json.loads((Path(__file__).parent / "reference.json").read_text())


@pytest.mark.parametrize("comparison", REFERENCE)
def test_every_row_of_the_comparison_has_its_bands(comparison):
    _, entries = read_comparison(comparison)
    assert {entry.name for entry in entries} == REFERENCE[comparison].keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("comparison", "name"), [(comparison, name) for comparison in REFERENCE for name in REFERENCE[comparison]]
)
def test_a_row_ends_in_its_bands(tmp_path, comparison, name):
    bands = dict(REFERENCE[comparison][name])
    _, entries = load_comparison(comparison)
    entry = next(entry for entry in entries if entry.name == name)
    train(with_rate(entry.config, bands.pop("lr")), tmp_path / name, 0, print)
    last = files.read_metrics(tmp_path / name)[-1]
    for measure, (low, high) in bands.items():
        assert low <= last[f"eval/{measure}"] <= high, measure
