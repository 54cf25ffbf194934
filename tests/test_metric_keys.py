"""docs/metrics.md defines every key of metrics.jsonl, and nothing else."""

import re
from pathlib import Path

import pytest
from runs import metrics, settings

from neighbor_grpo.config import load_config
from neighbor_grpo.training.trainer import Trainer

TABLE = Path(__file__).parents[1] / "docs" / "metrics.md"
KEYS = re.findall(r"^\| `([^`]+)` \|", TABLE.read_text(), re.M)
ELSEWHERE = {"scorer/NAME/KIND"}  # needs a server
KL = "method={name: flow_grpo, group_size: 4, num_steps: 3, kl: 0.1}"
FORWARD = {name: f"method={{name: {name}, group_size: 4, num_steps: 3, num_train_steps: 1}}" for name in ("nft", "awm", "dgpo")}


@pytest.fixture(scope="module")
def written(tiny_flux, tmp_path_factory):
    """Keys of runs: one watches metrics, one a divergence, a watched reward and a reward that fails; forward-process ones."""
    found = set()
    for name, function, watch, more in (
        ("plain", "brightness", "[diversity, saturation]", ()),
        ("watched", "sometimes", "['{0}:darkness', '{0}:broken']", (KL, "reward.max_failed=0.9")),
        ("scouted", "brightness", "[diversity]", ("scouts={count: 6, steps: 2}",)),
        *((name, "brightness", "[diversity]", (method,)) for name, method in FORWARD.items()),
    ):
        place = tmp_path_factory.mktemp(name)
        watched = "watch=" + watch.format(place / "reward.py")
        config = load_config(None, settings(tiny_flux, place, "iterations=2", watched, *more, function=function))
        for line in metrics(Trainer(config).run()):
            found |= line.keys()
    return found


def pattern(key):
    """Regular expression of a key: NAME and KIND stand for anything."""
    return re.compile(re.sub("NAME|KIND", ".+", re.escape(key)))


def test_every_key_of_a_run_is_in_the_table(written):
    assert [key for key in sorted(written) if not any(pattern(row).fullmatch(key) for row in KEYS)] == []


def test_every_row_of_the_table_is_a_key(written):
    stale = {row for row in KEYS if not any(pattern(row).fullmatch(key) for key in written)}
    assert stale <= ELSEWHERE and len(KEYS) == len(set(KEYS))


def test_a_row_says_unit_and_meaning():
    rows = [line for line in TABLE.read_text().splitlines() if line.startswith("| `")]
    assert all(len(cells := re.split(r" *\| *", row.strip("| "))) >= 3 and cells[2].endswith(".") for row in rows)
