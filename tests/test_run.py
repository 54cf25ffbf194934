"""The files of a run and what its report draws."""

import json
from dataclasses import replace

import pytest

from neighbor_grpo.errors import UserError
from neighbor_grpo.files.ledger import Ledger, Values
from neighbor_grpo.run import files
from neighbor_grpo.run.curves import charts, panels
from neighbor_grpo.run.pages import render

LINES = [
    {"iteration": 0, "eval/clip": 0.25, "eval_spread/clip": 0.1, "eval/diversity": 0.2, "time/evaluate": 3.0},
    {"iteration": 1, "reward/clip": 0.3, "spread/clip": 0.05, "flat_groups/clip": 0, "failed/clip": 1, "time/rollout": 2.0},
    {"iteration": 2, "reward/clip": 0.4, "spread/clip": 0.04, "time/rollout": 2.0, "time/update": 1.5, "time/evaluate": 3.0},
]
LINES[1] |= {"loss": 0.1, "lr": 1e-4, "nfe_old": 8, "mfu/update": 0.3, "scorer/clip/requests": 4, "max/ratio": 1.5}
LINES[2] |= {"loss": 0.2, "eval/clip": 0.5, "eval_failed/diversity": 2, "eval/gap": 0.1, "accuracy": 0.7}


@pytest.fixture
def run(tmp_path):
    for line in LINES:
        files.record(tmp_path, line)
    return tmp_path


def test_rewinding_drops_later_lines(run):
    files.rewind(run, 5)
    assert files.read_metrics(run) == LINES
    assert [files.training_seconds(line) for line in LINES] == [0.0, 2.0, 2.0 + 1.5]
    files.rewind(run, 1)
    assert files.read_metrics(run) == LINES[:2]
    files.record(run, LINES[2])
    assert files.read_metrics(run) == LINES


def test_a_line_cut_off_by_a_kill_is_dropped_and_the_next_one_is_whole(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 3, "rew')
    assert files.read_metrics(run) == LINES
    files.rewind(run, 2)
    files.record(run, {"iteration": 3})
    assert files.read_metrics(run) == [*LINES, {"iteration": 3}]


def test_a_run_that_has_recorded_nothing(tmp_path):
    files.rewind(tmp_path, 0)
    assert files.read_metrics(tmp_path) == [] and not list(tmp_path.iterdir())
    assert files.changes([]) == [] and files.changes([{"iteration": 1}]) == []
    with pytest.raises(UserError, match=r"config\.yaml"):
        files.read_config(tmp_path)


def test_changes_pair_the_first_and_the_last_evaluation():
    assert files.changes(LINES) == [files.Change("clip", 0.25, 0.5)]


def test_every_figure_of_the_method_is_drawn_under_its_own_name():
    assert panels(LINES) == ["clip", "diversity", "gap", "loss", "max/ratio", "accuracy"]


def test_the_curves_hold_the_recorded_numbers():
    drawn = {panel["title"]: panel["lines"] for panel in charts(LINES)}
    training, evaluation = drawn["clip"]
    assert (training["label"], training["x"], training["y"]) == ("training", [1, 2], [0.3, 0.4])
    assert (training["low"], training["high"]) == ([0.25, 0.36], [0.35, 0.44])
    assert (evaluation["label"], evaluation["x"], evaluation["y"]) == ("evaluation", [0, 2], [0.25, 0.5])
    (loss,) = drawn["loss"]
    assert (loss["label"], loss["x"], loss["y"], loss["low"]) == ("loss", [1, 2], [0.1, 0.2], None)


@pytest.mark.parametrize("value", (float("nan"), float("inf"), float("-inf")))
def test_what_cannot_be_drawn_leaves_a_gap(value):
    assert charts([{"iteration": 3, "loss": value}])[0]["lines"][0]["y"] == [None]


def test_text_of_a_user_cannot_leave_its_place_in_a_page(tmp_path):
    (tmp_path / "page.html").write_text('{% include "charts.html" %}')
    hostile = "</script><script>alert(1)</script>"
    page = render(tmp_path / "page.html", {"charts": {"curves": charts([{"iteration": 0, hostile: 1.0}])}})
    assert hostile not in page and page.count("<script>") == 2


def test_a_ledger_keeps_the_newest_values_of_all_ranks_and_skips_a_torn_line(tmp_path):
    failed = Values((0.5, None), {1: "no view"})
    Ledger(tmp_path).write("clip", "a", 0, failed)
    Ledger(tmp_path, rank=1).write("clip", "a", 1, Values((1.0, 2.0)))
    with (tmp_path / "scores-0.jsonl").open("a") as file:
        file.write('{"measure": "cl')
    ledger = Ledger(tmp_path)
    assert ledger.entries == {("clip", "a", 0): failed, ("clip", "a", 1): Values((1.0, 2.0))}
    assert not ledger.complete("clip", "a", 0) and ledger.complete("clip", "a", 1) and not ledger.complete("clip", "b", 1)
    assert ledger.has("clip", "a", 2) and not ledger.has("clip", "a", 3)
    ledger.write("clip", "a", 0, replace(failed, values=(0.5, 0.25), reasons={}))
    table = Ledger(tmp_path, rank=1).table("clip", "a", 2)
    assert table.values.tolist() == [[0.5, 0.25], [1.0, 2.0]] and table.reasons == ()
    assert len([json.loads(line) for line in (tmp_path / "scores-1.jsonl").read_text().splitlines()]) == 1
