"""Runs that are resumed: one owner, undamaged files, settings that may change, and the report of what is there."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from runs import metrics, settings
from test_trainer import equal_runs, same, train, weights

from neighbor_grpo.cli import main
from neighbor_grpo.config import load_config
from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic
from neighbor_grpo.files.lock import InUseError, Lock
from neighbor_grpo.run import files, record, samples
from neighbor_grpo.training.trainer import Trainer


@pytest.fixture(scope="module")
def finished(tiny_flux, tmp_path_factory):
    return train(tiny_flux, tmp_path_factory.mktemp("finished"), "evaluate.every=1", "keep_checkpoints=3")


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run, whose files may be damaged."""
    shutil.copytree(finished.parent, tmp_path / "b")
    place = tmp_path / "b" / "run"
    for name in ("config.yaml", "run.json"):
        text = (place / name).read_text()
        (place / name).write_text(text.replace(str(finished.parent), str(tmp_path / "b")))
    for name in ("metrics.jsonl",):
        (place / name).write_text((place / name).read_text().replace(str(finished.parent), str(tmp_path / "b")))
    return place


def resumed(run, *changes):
    Trainer.resume(run, changes).run()
    return metrics(run)


# ---------------------------------------------------------------- one owner


def test_a_run_that_is_in_use_is_refused_before_anything_is_changed(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    lock = Lock.take(run)
    with pytest.raises(InUseError, match=str(os.getpid())):
        Trainer.resume(run)
    with pytest.raises(UserError, match="in use"):
        Trainer(load_config(run / "config.yaml"))
    lock.release()
    assert before == {path: path.stat().st_mtime_ns for path in before}
    with pytest.raises(UserError, match="holds another run"):
        Trainer(load_config(run / "config.yaml"))


def _claim(place, queue, hold):
    os.chdir(place)
    run, lock = files.claim(None)
    queue.put(run.name)
    hold.wait()
    lock.release()


def test_runs_without_a_name_get_a_directory_each(tmp_path):
    fork = multiprocessing.get_context("fork")
    queue, hold = fork.Queue(), fork.Event()
    processes = [fork.Process(target=_claim, args=(tmp_path, queue, hold)) for _ in range(8)]
    for process in processes:
        process.start()
    names = sorted(queue.get(timeout=60) for _ in processes)
    hold.set()
    for process in processes:
        process.join()
    assert names == [f"{n:03d}" for n in range(1, 9)]


def test_the_lock_of_a_dead_process_is_free_and_a_failed_start_leaves_nothing(tmp_path):
    code = "import os, pathlib, neighbor_grpo.files.lock as l; lock = l.Lock.take(pathlib.Path('.')); os._exit(1)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    assert json.loads((tmp_path / ".lock").read_text())["process"] != os.getpid()
    Lock.take(tmp_path).release()
    assert (tmp_path / ".lock").read_text() == ""
    config = load_config(None, [f"run_dir={tmp_path / 'new'}", f"prompts.path={tmp_path / 'absent.txt'}"])
    with pytest.raises(UserError, match="absent"):
        Trainer(config)
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------- damage


def cut(file):
    file.write_bytes(file.read_bytes()[:-7])


def empty(file):
    file.write_bytes(b"")


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_damaged_checkpoint_is_named_kept_aside_and_passed_over(run, finished, capsys):
    cases = [(cut, "state.pt"), (flip, "weights.safetensors")]
    for (damage, name), newest in zip(cases, (3, 2), strict=True):
        damage(run / "checkpoints" / f"{newest:06d}" / name)
    lines = resumed(run)
    said = capsys.readouterr().out
    assert "state.pt" in said and "weights.safetensors" in said
    assert {path.name for path in (run / "checkpoints").iterdir()} == {
        "000001", "000002", "000003", "damaged-000002", "damaged-000003",
    }  # fmt: skip
    assert [line["iteration"] for line in lines] == [0, 1, 2, 3] and equal_runs(finished, run)


@pytest.mark.parametrize("damage", [cut, empty, flip, os.remove])
@pytest.mark.parametrize("name", ["state.pt", "weights.safetensors", "manifest.json"])
def test_every_damage_of_a_checkpoint_is_noticed(finished, tmp_path, damage, name):
    from neighbor_grpo.training import checkpoint

    shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
    damage(tmp_path / "checkpoints" / "000003" / name)
    found, said = checkpoint.newest(tmp_path / "checkpoints")
    assert found and found.name == "000002" and "000003" in said[0]


def test_an_old_checkpoint_that_could_not_be_removed_is_removed_when_the_run_is_resumed(run):
    """keep_checkpoints is 3, and a full disk left a fourth."""
    numbers = sorted(path.name for path in (run / "checkpoints").iterdir())
    shutil.copytree(run / "checkpoints" / numbers[0], run / "checkpoints" / "000000")
    record.write_record(run, replace(record.read_record(run), ended=None))  # the command failed after its last iteration
    resumed(run)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == numbers


def test_a_history_without_checkpoints_is_refused(run):
    shutil.rmtree(run / "checkpoints")
    lines = metrics(run)
    with pytest.raises(UserError, match="no checkpoint"):
        Trainer.resume(run)
    assert metrics(run) == lines


@pytest.mark.parametrize(
    ("name", "damage", "named"),
    [
        ("metrics.jsonl", lambda file: file.write_text('{"iteration": 0}\n{"iter\n{"iteration": 2}\n'), "line 2"),
        ("metrics.jsonl", empty, "line of iteration 0"),
        ("metrics.jsonl", lambda file: file.write_text("".join(file.open().readlines()[:2])), "line of iteration 2"),
        ("run.json", empty, "run.json"),
        ("run.json", os.remove, "run.json"),
        ("run.json", lambda file: file.write_text('{"version": 99}'), "version 99"),
        ("run.json", lambda file: file.write_text('{"version": 1}'), "run.json"),
        ("config.yaml", lambda file: file.write_bytes(b"\xff\xfe\x00"), "config.yaml"),
        ("config.yaml", empty, "cannot be|config.yaml"),
    ],
)
def test_a_damaged_record_is_one_line(run, name, damage, named):
    damage(run / name)
    with pytest.raises(UserError, match=named):
        Trainer.resume(run)


def test_report_and_export_are_made_again_from_what_is_there(run, capsys):
    for name in ("report.html", "plan.txt"):
        (run / name).unlink()
    shutil.rmtree(run / "samples" / "000003")
    cut(run / "samples" / "000002" / "00-0.png")
    assert main(["report", str(run)]) == 0
    assert "data:image/png" in (run / "report.html").read_text()
    shutil.rmtree(run / "samples")
    assert main(["report", str(run)]) == 0 and main(["export", str(run), "--out", str(run / "out")]) == 0
    flip(run / "lora" / "pytorch_lora_weights.safetensors")
    assert main(["export", str(run), "--out", str(run / "out2")]) == 2 and not (run / "out2").exists()
    assert "pytorch_lora_weights.safetensors" in capsys.readouterr().err


# ---------------------------------------------------------------- other settings


def test_fewer_iterations_than_done_finish_at_once_and_more_continue(run, finished, tiny_flux, tmp_path):
    lines = metrics(run)
    assert resumed(run, "iterations=2") == lines and record.ended(run) == "finished"
    (tmp_path / "c").mkdir()
    longer = train(tiny_flux, tmp_path / "c", "evaluate.every=1", "iterations=5")
    resumed(run, "iterations=5", "save_every=2")
    assert same(weights(longer, 5), weights(run, 5))
    changed = [(change.iteration, change.key, change.after) for change in record.read_record(run).changes]
    assert changed == [(3, "iterations", 2), (3, "iterations", 5), (3, "save_every", 2)]
    assert load_config(run / "config.yaml").iterations == 5 and "save_every = 2" in (run / "report.html").read_text()


def test_a_changed_rate_decay_and_average_are_in_force(run):
    trainer = Trainer.resume(run, ["iterations=4", "optimizer.lr=5e-4", "optimizer.weight_decay=0.5", "ema.decay=0.5"])
    before = {name: weight.detach().clone() for name, weight in trainer.learner.weights.items()}
    trainer.run()
    group = trainer.learner.optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (5e-4, 0.5) and metrics(run)[-1]["lr"] == 5e-4
    assert trainer.learner.ema.decay == 0.5
    assert all(not torch.equal(before[name], weight) for name, weight in trainer.learner.weights.items())


@pytest.mark.parametrize(
    "change",
    ["ema=null", "model.lora.rank=4", "optimizer.name=adamw_8bit", "method.group_size=6", "seed=1", "prompts.per_iteration=1"],
)
def test_what_may_not_change_is_refused_and_nothing_is_touched(run, change):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(UserError, match=change.split("=")[0].replace(".", r"\.")):
        Trainer.resume(run, [change])
    edited = yaml.safe_load((run / "config.yaml").read_text())
    assert before == {path: path.stat().st_mtime_ns for path in before} and edited


def test_an_edited_configuration_is_compared_with_the_record(run):
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["model"]["lora"]["rank"] = 4
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(UserError, match=r"model\.lora\.rank"):
        Trainer.resume(run)


def test_changed_training_prompts_are_refused(run):
    with (run.parent / "prompts.txt").open("a") as file:
        file.write("one more\n")
    with pytest.raises(UserError, match="prompts"):
        Trainer.resume(run)


def test_another_evaluation_is_measured_from_its_beginning_on(run):
    before = metrics(run)
    lines = resumed(run, "evaluate.prompts=3", "evaluate.seeds=1", "iterations=4")
    assert before[:3] == lines[:3]
    measured = {key for key in lines[3] if key.startswith("eval/")}
    assert measured and lines[3]["loss"] == before[3]["loss"]
    assert record.read_record(run).base == 3
    changes = files.changes(lines, 3)
    assert {f"eval/{change.measure}" for change in changes} == measured
    assert all(change.before == lines[3][f"eval/{change.measure}"] for change in changes)
    assert [len(one.prompts) for one in samples.all_samples(run)] == [3, 3]
    assert "changed at iteration 3" in (run / "report.html").read_text()


def test_failures_are_listed_once_after_a_resume(tiny_flux, tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    more = ("reward.max_failed=1", "evaluate.every=1", "keep_checkpoints=9")
    whole = Trainer(load_config(None, settings(tiny_flux, tmp_path / "a", *more, function="sometimes"))).run()
    run = Trainer(load_config(None, settings(tiny_flux, tmp_path / "b", *more, function="sometimes"))).run()
    atomic.remove(run / "checkpoints" / "000003")
    atomic.remove(run / "checkpoints" / "000002")
    Trainer.resume(run).run()

    def lines(place):
        return sorted((place / "failures.jsonl").read_text().replace(str(place.parent), "").splitlines())

    assert lines(whole) == lines(run) and lines(run)


def test_a_setting_that_is_newer_than_the_run_has_its_default(run):
    """A run of an earlier release, which did not know some keys, is resumed; a value other than the default is a change."""
    for name in ("config.yaml", "run.json"):
        text = (run / name).read_text()
        values = yaml.safe_load(text)
        known = values if name == "config.yaml" else values["settings"]
        del known["scouts"], known["evaluate"]["skip"], known["method"]["surrogate"]
        (run / name).write_text(yaml.safe_dump(values) if name == "config.yaml" else json.dumps(values))
    assert resumed(run, "iterations=4")[-1]["iteration"] == 4
    assert json.loads((run / "run.json").read_text())["settings"]["evaluate"]["skip"] == 0
    with pytest.raises(UserError, match="scouts"):
        resumed(run, "scouts.count=8", "scouts.steps=3", "iterations=5")
