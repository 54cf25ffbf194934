"""The server behind `watch`: who is answered, and with what."""

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from made_runs import add_samples, line, make_run
from starlette.testclient import TestClient

from neighbor_grpo.commands.main import main
from neighbor_grpo.run import serving
from neighbor_grpo.run.watch import Watch, application


@pytest.fixture
def run(tmp_path):
    run = make_run(tmp_path / "mine", [line(0, True), line(1), line(2, True)])
    add_samples(run, 0, "gray"), add_samples(run, 2, "navy")
    return run


def first_message(url: str, **options) -> dict:
    """Read the first message of a stream."""
    with httpx.stream("GET", url, timeout=20, **options) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        return json.loads(next(text for text in answer.iter_lines() if text.startswith("data: "))[6:])


def test_only_requests_that_name_this_machine_are_answered(run):
    guarded = serving.Guard(application(Watch([run])))
    for host in ("127.0.0.1:8001", "localhost:9000", "[::1]:8001", "LOCALHOST"):
        assert TestClient(guarded, headers={"host": host}).get("/").status_code == 200, host
    for host in ("evil.example", "127.0.0.1.evil.example", "192.168.0.1:8001", "", "127.0.0.1@evil.example"):
        assert TestClient(guarded, headers={"host": host}).get("/").status_code == 421, host


def test_a_token_is_asked_for_and_becomes_a_cookie(run):
    client = TestClient(
        serving.Guard(application(Watch([run])), "secret"), follow_redirects=False, base_url="http://machine:8001"
    )
    assert client.get("/").status_code == client.get("/?token=wrong").status_code == client.get("/events").status_code == 403
    answer = client.get("/?token=secret")
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    assert {"HttpOnly", "SameSite=strict"} <= set(answer.headers["set-cookie"].split("; "))
    assert client.get("/").status_code == 200  # the client keeps the cookie
    assert serving.new_token("127.0.0.1") is serving.new_token("::1") is serving.new_token("localhost") is None
    assert len(serving.new_token("0.0.0.0") or "") > 30 and serving.new_token("0.0.0.0") != serving.new_token("0.0.0.0")


def test_every_answer_has_a_strict_policy_and_only_reading_is_answered(run):
    client = TestClient(serving.Guard(application(Watch([run]))), headers={"host": "localhost"})
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    nonce = re.search("script-src 'nonce-(.+?)'", policy)[1]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert len(re.findall("<(?:script|style)", page.text)) == page.text.count(f'nonce="{nonce}"') > 2
    assert nonce not in client.get("/").text
    for answer in (page, client.get("/nothing"), client.post("/"), client.get("/pictures/x")):
        assert answer.headers["x-content-type-options"] == "nosniff" and "content-security-policy" in answer.headers
    assert [client.post("/").status_code, client.put("/events").status_code, client.get("/nothing").status_code] == [
        405,
        405,
        404,
    ]


@pytest.fixture
def server(run):
    """Start the command as a user would; yield its address, and stop it."""
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    process = subprocess.Popen(
        [sys.executable, "-m", "neighbor_grpo", "watch", str(run), "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    url = re.search(r"http://\S+", process.stdout.readline())[0]
    yield url
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before  # nothing was written


def test_a_served_run_is_the_run_and_pictures_come_by_keys(server, run):
    message = first_message(f"{server}events")
    assert message["kind"] == "page" and message["charts"]["curves"][0]["title"] == "scenes"
    keys = re.findall(r'src="(pictures/[0-9a-f]{32})"', message["html"])
    served = {httpx.get(server + key).content for key in keys}
    assert served == {file.read_bytes() for file in run.glob("samples/0*/*.png")} and len(keys) == 12
    for path in ("pictures/..%2f..%2fconfig.yaml", f"pictures/{'0' * 32}", "../config.yaml", "config.yaml", "%2e%2e/run.json"):
        assert httpx.get(server + path).status_code == 404, path
    assert not re.search(re.escape(str(run.parent)), message["html"].split("To do it again")[0])
    assert first_message(f"{server}events")["html"] == message["html"]  # another client


def test_mistakes_are_one_line(run, capsys):
    taken = socket.create_server(("127.0.0.1", 0))
    cases = {
        (str(run.parent),): "no run in",
        (str(run / "missing"),): "no run in",
        (str(run), str(run)): "given twice",
        (str(run), "--port", str(taken.getsockname()[1])): "choose another host or port",
        (str(run), "--host", "no.such.name.invalid"): "choose another host or port",
        (str(run), "--port", "70000"): "out of range",
        (): "required: RUN",
    }
    for arguments, told in cases.items():
        assert main(["watch", *arguments]) == 2, arguments
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1, arguments
    taken.close()
    assert Path(run / "report.html").exists() is False
