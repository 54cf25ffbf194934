"""Runs as they go on: lines that are appended, cut off, dropped; runs that wait, stop, end."""

import json
import os
import socket

import pytest
from made_runs import add_samples, line, make_run

from neighbor_grpo.errors import UserError
from neighbor_grpo.files.lock import Lock
from neighbor_grpo.run import files, record
from neighbor_grpo.run.follow import Followed, Tail, names_of, runs_of
from neighbor_grpo.run.watch import Watch


def points(messages: list[dict]) -> dict[str, list]:
    """Return the points of training that messages bring, by panel."""
    found = [panel for message in messages if message["kind"] == "points" for panel in message["panels"]]
    return {panel["title"]: [(one["label"], one["x"], one["y"]) for one in panel["lines"]] for panel in found}


def test_a_tail_reads_what_is_whole_and_notices_what_is_gone(tmp_path):
    tail = Tail(tmp_path / "metrics.jsonl")
    assert tail.read() is False and tail.lines == []
    for n in range(3):
        files.record(tmp_path, line(n))
    assert tail.read() is False and [one["iteration"] for one in tail.lines] == [0, 1, 2]
    with tail.file.open("a") as file:
        file.write(json.dumps(line(3))[:20])
    assert tail.read() is False and len(tail.lines) == 3
    files.record(tmp_path, line(3))  # cuts the half line off first
    assert tail.read() is False and tail.lines == files.read_metrics(tmp_path)
    files.rewind(tmp_path, 1)
    files.record(tmp_path, line(2, loss=7.0))
    files.record(tmp_path, line(3, loss=8.0))
    files.record(tmp_path, line(4, loss=9.0))
    assert tail.read() is True and tail.lines == files.read_metrics(tmp_path)
    tail.file.unlink()
    assert tail.read() is True and tail.lines == []


def test_a_rewound_run_whose_new_file_is_as_long_is_read_anew(tmp_path):
    tail = Tail(tmp_path / "metrics.jsonl")
    files.record(tmp_path, line(1, loss=1.5)), files.record(tmp_path, line(2, loss=2.5))
    tail.read()
    files.rewind(tmp_path, 1)
    files.record(tmp_path, line(2, loss=3.5))
    assert tail.read() is True and tail.lines[-1]["loss"] == 3.5


def test_only_new_points_are_sent_and_parts_only_when_they_change(tmp_path):
    run = make_run(tmp_path / "run", [line(0, True), line(1)], ended=None)
    watch = Watch([run])
    assert [one["kind"] for one in watch.look()] == ["page"] and watch.look() == []
    files.record(run, line(2))
    messages = watch.look()
    assert points(messages)["scenes"] == [("training", [2], [pytest.approx(2 / 7, rel=1e-5)])]
    files.record(run, line(3)), files.record(run, line(4, True))
    messages = watch.look()
    assert points(messages)["scenes"][1] == ("evaluation", [4], [pytest.approx(0.14)])
    assert {one["place"] for one in messages if "place" in one} >= {
        "states",
        "overview",
        "run0-outcome",
        "run0-against",
        "run0-time",
    }
    assert not any(one.get("place") == "run0-pictures" for one in messages)
    add_samples(run, 4, "navy")
    assert [one["place"] for one in watch.look() if one["kind"] == "part"] == ["run0-pictures", "run0-time", "states"]
    files.rewind(run, 1)
    (page,) = watch.look()
    assert page["charts"]["curves"][0]["lines"][0]["x"] == [1]


def test_a_run_is_told_from_its_loading_to_its_end(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(UserError, match="no run"):
        runs_of([run])
    lock = Lock.take(run)
    watch = Watch([run])
    assert "not recorded anything yet" in watch.look()[0]["html"]
    make_run(tmp_path / "other", [], ended=None)
    for name in ("run.json", "config.yaml"):
        os.replace(tmp_path / "other" / name, run / name)
    assert "not recorded anything yet" in watch.look()[0]["html"]
    files.record(run, line(0, True)), files.record(run, line(1))
    followed = Followed(run, "run")
    followed.look()
    assert followed.state == "It trains: 1 of 10 iterations are done, 3 s each without evaluations."
    assert any("It trains: 1 of 10" in one.get("html", "") for one in watch.look())
    lock.release()
    assert any("neighbor-grpo train --resume" in one.get("html", "") for one in watch.look())
    record.end(run, "diverged")
    assert "Ended after 1 of 10" in watch.look()[0]["html"]
    record.end(run, "finished")
    assert "Finished after 1 iterations" in watch.look()[0]["html"]


def test_a_damaged_line_is_named_and_read_again_once_it_is_mended(tmp_path):
    run = make_run(tmp_path / "run", [line(0), line(1)])
    watch = Watch([run])
    watch.look()
    whole = (run / "metrics.jsonl").read_text()
    second = json.dumps(line(2)) + "\n"
    (run / "metrics.jsonl").write_text(whole + second + "{broken}\n" + json.dumps(line(3)) + "\n")
    assert any("line 4 is damaged" in one.get("html", "") for one in watch.look())
    (run / "metrics.jsonl").write_text(whole + second + json.dumps(line(3)) + "\n")
    messages = watch.look()
    assert any("Finished after 3" in one.get("html", "") for one in messages)
    assert points(messages)["scenes"][0][1] == [2, 3] and any("<td>6.0 s</td>" in one.get("html", "") for one in messages)


def test_a_comparison_is_all_its_runs_and_those_that_begin_later(tmp_path):
    for name in ("a/seed-0", "b/seed-0"):
        make_run(tmp_path / "cmp" / name, [line(0, True), line(1)])
    (tmp_path / "cmp" / "comparison.yaml").write_text("")
    watch = Watch([tmp_path / "cmp"])
    (page,) = watch.look()
    assert [one["label"] for one in page["charts"]["curves"][0]["lines"]] == [
        "a/seed-0 training", "a/seed-0 evaluation", "b/seed-0 training", "b/seed-0 evaluation"
    ]  # fmt: skip
    make_run(tmp_path / "cmp" / "b" / "seed-1", [line(0)], ended=None)
    (page,) = watch.look()
    assert len(watch.followed) == 3 and "b/seed-1" in page["html"]
    files.record(tmp_path / "cmp" / "b" / "seed-1", line(1))
    assert points(watch.look())["scenes"] == [("b/seed-1 training", [1], [pytest.approx(1 / 7, rel=1e-5)])]


def test_what_cannot_be_watched_is_refused(tmp_path):
    run = make_run(tmp_path / "run", [line(0)])
    (tmp_path / "cmp").mkdir()
    (tmp_path / "cmp" / "comparison.yaml").write_text("")
    with pytest.raises(UserError, match="neighbor-grpo compare"):
        runs_of([tmp_path / "cmp"])
    with pytest.raises(UserError, match="directory of a run"):
        runs_of([tmp_path / "missing"])
    with pytest.raises(UserError, match="given twice"):
        runs_of([run, tmp_path / "cmp" / ".." / "run"])
    assert names_of([run]) == ["run"] and names_of([run, tmp_path / "x" / "run"]) == ["run", "x/run"]
    (run / ".lock").write_text(json.dumps({"host": socket.gethostname(), "process": 2**22 + 1}))
    assert Followed(run, "run").look().kinds == {"all"}
