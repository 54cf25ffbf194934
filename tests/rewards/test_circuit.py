"""What a scorer that hangs, or dies in the middle of an answer, costs: one timeout, not one for each request."""

import gzip
import json
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from itertools import chain, repeat

import pytest
import torch
from faulty import Faulty
from test_remote import scorer, spoil
from test_server import pictures, worth

from neighbor_grpo.errors import UserError
from neighbor_grpo.rewards.http import connection
from neighbor_grpo.rewards.http.client import Remote
from neighbor_grpo.rewards.http.vlm import UnifiedReward
from neighbor_grpo.rewards.score import score
from neighbor_grpo.rewards.scorer import Scorer

TIMEOUT = 1.0


@contextmanager
def listening(answer=None):
    """The url of a server that takes every connection and answers nothing, or these bytes, and the number of connections."""
    taken = []
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:

        def serve():
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                taken.append(client)
                if answer is not None:
                    client.recv(1 << 20)
                    client.sendall(answer)
                    with suppress(OSError):  # drained, or the client would get a reset instead of the answer
                        client.shutdown(socket.SHUT_WR)
                        while client.recv(1 << 16):
                            pass
                    client.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", taken
        server.shutdown(socket.SHUT_RDWR)


def timed(remote, n=16):
    """The values of n pictures, and the seconds they took."""
    began = time.monotonic()
    values = remote(pictures(n), [f"{k}" for k in range(n)], [{}] * n)
    return values, time.monotonic() - began


def both(url):
    """A client of each kind, whose requests have one picture each."""
    return (
        Remote(url, timeout=TIMEOUT, batch=1, backoff=0.01),
        UnifiedReward(url, model="m", timeout=TIMEOUT, concurrency=4, backoff=0.01),
    )


def test_a_server_that_hangs_altogether_costs_one_timeout_and_a_sign_of_life(monkeypatch):
    monkeypatch.setattr(connection, "_ALIVE", 0.2)
    with listening() as (url, taken):
        for remote in both(url):
            values, seconds = timed(remote)
            assert all(isinstance(value, Exception) and "attempt" in str(value) for value in values)
            assert TIMEOUT <= seconds < 1.9 * TIMEOUT
            counts = remote.connection.counts
            assert counts["failed"] == 16 and counts["not sent"] >= 11
            values, seconds = timed(remote)  # at most one more sign of life
            assert seconds < 0.9 and sum("not sent" in str(value) for value in values) >= 14
        assert len(taken) < 2 * 7


def test_a_server_whose_reward_hangs_costs_two_timeouts_and_is_found_again():
    """GET /health is answered while the reward hangs."""
    server = Faulty(scorer, chain(["slow"] * 5, repeat("ok")), spoil, hold=3 * TIMEOUT)
    with server.serving() as url:
        remote = Remote(url, timeout=TIMEOUT, batch=1, backoff=0.01)
        values, seconds = timed(remote)
        assert all(isinstance(value, Exception) for value in values)
        assert 2 * TIMEOUT <= seconds < 3 * TIMEOUT
        time.sleep(TIMEOUT + 0.1)  # as long as the attempt that found it still hanging
        values, _ = timed(remote)
        assert values == worth(pictures(16), [f"{k}" for k in range(16)], [{}] * 16)


def test_requests_that_wait_for_the_one_that_finds_out_are_sent_if_it_succeeds():
    server = Faulty(scorer, chain(["drip"] * 4, repeat("ok")), spoil, hold=2 * TIMEOUT)
    with server.serving() as url:
        values, seconds = timed(Remote(url, timeout=TIMEOUT, batch=1, backoff=0.01))
    assert values == worth(pictures(16), [f"{k}" for k in range(16)], [{}] * 16)
    assert seconds < 2 * TIMEOUT


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "connection|disconnected|closed"),
        (b"\x1b[2J\x00garbage\r\n\r\n", "connection|Protocol|closed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{", "closed|incomplete"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n\xff\xfe\x00", "malformed"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * (1 << 20) + b"\r\n\r\n", "connection|Protocol|closed|reset"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "HTTP 302"),
        (b"HTTP/1.1 500 \r\nContent-Length: 9\r\n\r\n\x1b[31mred\x07", r"HTTP 500: \\x1b"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(b" " * (64 << 20)), "malformed|utf|codec"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"scores": [' + b"[" * 5000, "nested|malformed"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"scores": [1' + b"0" * 5000 + b"]}", "finite|malformed|digits"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"scores": {"0": 1}}', "not a list"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"scores": [null], "reasons": {"0": "\\u001b[2J"}}', r"\\x1b"),
    ],
)
def test_answers_that_no_scorer_gives_are_one_safe_line(answer, reason):
    with listening(answer) as (url, _):
        scores = score(Scorer("far", Remote(url, timeout=5, retries=0)), pictures(1), ["a"], [{}])
    (failure,) = scores.failures
    assert failure.reason.isprintable() and len(failure.reason) <= 500
    assert re.search(reason, failure.reason, re.IGNORECASE), failure.reason


def test_a_server_that_is_killed_while_it_scores(tmp_path):
    code = """if True:
        import time
        from neighbor_grpo.rewards.http.server import serve
        from neighbor_grpo.rewards.scorer import Scorer
        serve(Scorer("slow", lambda images, *_: time.sleep(60)), port=0)
    """
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    remote = Remote(process.stdout.readline().split()[-1], timeout=30, retries=1, backoff=0.01, batch=4)
    threading.Timer(0.5, process.kill).start()
    values, seconds = timed(remote, 8)
    assert seconds < 10 and all("connection" in str(value) for value in values)
    process.communicate()


def test_the_whole_loss_of_a_call_is_a_reward_error_with_the_reason():
    with listening() as (url, _):
        scores = score(Scorer("far", Remote(url, timeout=0.2, retries=0)), pictures(4), ["a"] * 4, [{}] * 4)
    assert len(scores.failures) == 4 and "0.2 s" in scores.failures[0].reason and torch.isnan(scores.values).all()


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://x", "http://", "http://:80", "http://x:99999", "http://x:port", "http://x/#f", "http://x?y=1",
     "http://[::1", "http://x y", "http://x\x1b[2J", "~/socket", "file:///etc/passwd", "http://x:0"],
)  # fmt: skip
def test_an_url_that_is_not_an_address_is_refused(url):
    for remote in both(url):
        with pytest.raises(UserError, match="correct the url") as error:
            remote.load()
        assert str(error.value).isprintable()


def test_a_large_health_is_refused():
    answer = json.dumps({"status": "ok", "scorer": {"name": "x" * 100_000}}).encode()
    with listening(b"HTTP/1.1 200 OK\r\n\r\n" + answer) as (url, _), pytest.raises(UserError, match="bytes"):
        Remote(url).load()
