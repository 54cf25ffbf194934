"""The commands as a user types them."""

import os
import re
import signal
import subprocess
import sys

import httpx
import pytest
from studies import draw, info_of

from neighbor_grpo.arena.store import Store
from neighbor_grpo.cli import main


@pytest.fixture
def folders(tmp_path):
    return [str(draw(tmp_path / name, ["a cube"], tone=n)) for n, name in enumerate("ab")]


def mistake(arguments, capsys):
    """Return the one line that a mistake ends in."""
    assert main(["arena", *arguments]) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert "Traceback" not in printed.out
    return line


def test_serve_votes_and_stop_without_torch(folders, tmp_path, capsys):
    db = str(tmp_path / "votes.db")
    code = "import sys; from neighbor_grpo.cli import main; code = main(); assert 'torch' not in sys.modules; sys.exit(code)"
    command = [sys.executable, "-c", code, "arena", "serve", *folders, "--db", db, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    assert process.stdout.readline() == "2 models (a, b), 1 prompts, 1 pairs\n"
    url = process.stdout.readline().strip()
    link = None
    with httpx.Client(follow_redirects=True, headers={"origin": url.rstrip("/")}) as client:
        assert "Begin" in client.get(url).text
        assert main(["arena", "invite", db, "Ada", "--url", url]) == 0
        name, link = capsys.readouterr().out.split()
        page = client.post(f"{url}join", data={"invitation": link.rpartition("/")[2]}).text
        csrf = re.search(r'data-csrf="([^"]+)"', page)[1]
        turn = client.get(f"{url}pair").json()
        body = {"assignment": turn["token"], "answers": {"overall": "tie"}}
        assert client.post(f"{url}vote", json=body, headers={"x-csrf": csrf}).json()["token"] is None
        port = url.rstrip("/").rpartition(":")[2]
        assert "choose another host or port" in mistake(["serve", *folders, "--db", f"{db}2", "--port", port], capsys)
        assert "in use by process" in mistake(["serve", *folders, "--db", db, "--port", "0"], capsys)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0 and name == "Ada"
    assert not (tmp_path / "votes.db2").exists()


def test_mistakes(folders, tmp_path, capsys):
    assert "--db" in mistake(["invite", str(tmp_path / "none.db"), "Ada"], capsys)
    Store.serving(str(tmp_path / "votes.db"), info_of()).close()
    assert "another --db" in mistake(["serve", *folders, "--db", str(tmp_path / "votes.db"), "--port", "0"], capsys)
    assert "is not a name" in mistake(["invite", str(tmp_path / "votes.db"), " Ada"], capsys)
    for url in ("arena.example.org", "ftp://x", "http://x/path", "http://"):
        assert "write https://NAME" in mistake(["invite", str(tmp_path / "votes.db"), "Ada", "--url", url], capsys)
    assert "one model only" in mistake(["serve", folders[0]], capsys)
    assert "prompt_following" in mistake(["serve", *folders, "--question", "colour"], capsys)


def test_a_package_that_is_missing(folders, capsys, monkeypatch):
    monkeypatch.setattr("neighbor_grpo.commands.arena_serve.find_spec", lambda name: None)
    assert "pip install 'neighbor-grpo[arena]'" in mistake(["serve", *folders], capsys)
