"""Files and directories that are whole or absent."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic


def fill(place, value="one"):
    with atomic.directory(place, "thing") as aside:
        (aside / "deep").mkdir()
        (aside / "deep" / "a.txt").write_text(value)
        (aside / "b.bin").write_bytes(bytes(range(256)))


def partials(folder):
    return [path.name for path in folder.rglob(".*")]


def test_a_file_is_replaced_whole_or_stays(tmp_path):
    file = tmp_path / "a.txt"
    atomic.write(file, "old ü")
    with pytest.raises(ZeroDivisionError), atomic.writing(file) as aside:
        aside.write_text("half")
        1 / 0  # noqa: B018
    assert file.read_text(encoding="utf-8") == "old ü" and not partials(tmp_path)
    atomic.write(file, b"new")
    assert file.read_bytes() == b"new" and not partials(tmp_path)


def test_a_directory_is_replaced_whole_or_stays(tmp_path):
    place = tmp_path / "thing"
    fill(place)
    with pytest.raises(ZeroDivisionError), atomic.directory(place, "thing") as aside:
        (aside / "b.bin").write_text("half")
        1 / 0  # noqa: B018
    atomic.check(place, "thing")
    fill(place, "two")
    assert (place / "deep" / "a.txt").read_text() == "two" and not partials(tmp_path)
    atomic.check(place, "thing")


def test_what_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for free in ("new", "empty", "new/below"):
        atomic.refuse_used(tmp_path / free)
    for used, reason in ((tmp_path, "is not empty"), (tmp_path / "file", "is a file")):
        with pytest.raises(UserError, match=f"{reason}: choose another --out"):
            atomic.refuse_used(used)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda place: (place / "b.bin").write_bytes(bytes(255)), "b.bin"),
        (lambda place: (place / "b.bin").write_bytes(b"\x01" + bytes(range(1, 256))), "b.bin"),
        (lambda place: (place / "deep" / "a.txt").unlink(), "a.txt"),
        (lambda place: (place / "deep" / "a.txt").write_text(""), "a.txt"),
        (lambda place: (place / atomic.MANIFEST).unlink(), atomic.MANIFEST),
        (lambda place: (place / atomic.MANIFEST).write_text(""), atomic.MANIFEST),
        (lambda place: (place / atomic.MANIFEST).write_bytes(b"\xff\xfe"), atomic.MANIFEST),
        (lambda place: (place / atomic.MANIFEST).write_text("[" * 100_000), atomic.MANIFEST),
        (lambda place: (place / atomic.MANIFEST).write_text('{"version": 1, "kind": "other", "files": {}}'), "thing"),
    ],
)
def test_damage_is_named(tmp_path, damage, named):
    place = tmp_path / "thing"
    fill(place)
    damage(place)
    with pytest.raises(atomic.DamagedError, match=named):
        atomic.check(place, "thing")


def test_another_version_is_refused_by_name(tmp_path):
    fill(tmp_path / "thing")
    file = tmp_path / "thing" / atomic.MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": 7}))
    with pytest.raises(UserError, match="version 7"):
        atomic.check(tmp_path / "thing", "thing")


@pytest.mark.parametrize("torn", ["", "x", '{"b": 2}', "y" * 10_000])
def test_a_line_follows_whole_lines_only(tmp_path, torn):
    file = tmp_path / "a.jsonl"
    atomic.append(file, "first")
    with file.open("a") as opened:
        opened.write(torn)
    atomic.append(file, "second")
    assert file.read_text() == "first\nsecond\n"
    file.write_text(torn)
    atomic.append(file, "only")
    assert file.read_text() == "only\n"


def test_what_the_dead_left_is_removed_or_finished(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    host, process = atomic._host(), int(dead.stdout)
    fill(tmp_path / "thing")
    (tmp_path / "thing").rename(tmp_path / ".thing.old")  # killed between the two renames
    fill(tmp_path / "other")
    fill(tmp_path / ".other.old")
    (tmp_path / f".a.txt.{host}.{process}.partial").write_text("half")
    (tmp_path / f".a.txt.{host}.{os.getpid()}.partial").write_text("half")
    (tmp_path / ".a.txt.elsewhere.1.partial").mkdir()
    atomic.remove_dead(tmp_path)
    assert sorted(partials(tmp_path)) == sorted(
        [".thing.old", ".other.old", f".a.txt.{host}.{os.getpid()}.partial", ".a.txt.elsewhere.1.partial"]
    )
    atomic.tidy(tmp_path)
    assert not partials(tmp_path) and sorted(path.name for path in tmp_path.iterdir()) == ["other", "thing"]
    atomic.check(tmp_path / "thing", "thing")


@pytest.mark.parametrize(
    "save",
    [
        lambda path: save_file({"a": torch.zeros(100_000)}, path),
        lambda path: torch.save({"a": torch.zeros(100_000)}, path.open("wb", buffering=0)),
        lambda path: path.write_bytes(b"x" * 400_000),
    ],
)
def test_a_file_that_cannot_grow_is_an_os_error_that_names_it(tmp_path, save):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError) as caught, atomic.writing(tmp_path / "a.bin") as aside:
            save(aside)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(tmp_path / "a.bin")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_the_next_writer_of_a_name_removes_what_a_killed_one_left(tmp_path, kind):
    def write(text):
        if kind == "file":
            atomic.write(tmp_path / "out", text)
        else:
            with atomic.directory(tmp_path / "out", "thing") as aside:
                (aside / "a.txt").write_text(text)

    child = os.fork()
    if not child:  # killed in the middle
        atomic.Path.replace = atomic.Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        write("half")
    os.waitpid(child, 0)
    (tmp_path / f".other.{atomic._host()}.{child}.partial").write_text("of another name")
    (tmp_path / f".out.elsewhere.{child}.partial").write_text("of another machine")
    assert sum(path.name.startswith(f".out.{atomic._host()}") for path in tmp_path.iterdir()) == 1
    write("whole")
    assert sorted(partials(tmp_path)) == sorted([f".other.{atomic._host()}.{child}.partial", f".out.elsewhere.{child}.partial"])
