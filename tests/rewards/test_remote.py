"""The remote reward against servers that fail: each picture is either right or failed with a reason, and nothing hangs."""

import json
import random
import socket
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import chain, cycle, repeat

import pytest
import torch
from faulty import KINDS, Faulty
from pydantic import ValidationError
from test_server import pictures, worth

from neighbor_grpo.errors import UserError
from neighbor_grpo.rewards.http import protocol
from neighbor_grpo.rewards.http.client import Remote
from neighbor_grpo.rewards.score import Scores, score
from neighbor_grpo.rewards.scorer import Scorer


def scorer(path, body):
    assert path == "/score"
    sent = protocol.read_request(body)
    values = worth(sent.images(), sent.prompts, sent.metadata)
    return protocol.answer(Scores(torch.tensor(values, dtype=torch.float64)), {"name": "faulty"}, {})


def spoil(kind, right):
    values = json.loads(right)["scores"]
    wrong = random.Random(repr(values)).choice([values[1:], [*values, 1.0], [str(v) for v in values], [True] * len(values), 7])
    return {
        "nan": right.replace(repr(values[0]).encode(), b"NaN", 1),
        "garbage": right[:-1] + b"]",
        "wrong": json.dumps({"scores": wrong}).encode(),
        "huge": right.replace(repr(values[0]).encode(), b"1e999", 1),
    }[kind]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


@pytest.mark.parametrize("n", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_faults_are_counted_and_every_number_is_the_right_one(n):
    rng = random.Random(0)
    plan = rng.choices([kind for kind in KINDS if kind not in ("slow", "drip")], k=n - 4) + ["ok"] * (n * 3 // 5)
    rng.shuffle(plan)
    plan[n:n] = ["slow", "drip"] * 2  # side by side, for each takes its time
    server = Faulty(scorer, chain(plan, repeat("ok")), spoil, hold=2.0)
    images, prompts, metadata = pictures(128), ["p" * (k % 5) for k in range(128)], [{"bonus": k} for k in range(128)]
    right = worth(images, prompts, metadata)
    scored = failed = 0
    with server.serving() as url:
        remote = Remote(url, timeout=1.5, retries=2, backoff=0.001, batch=2, concurrency=8)
        remote.load()
        while sum(server.injected.values()) < len(plan):
            for value, expected in zip(remote(images, prompts, metadata), right, strict=True):
                if isinstance(value, Exception):
                    failed += 1
                    assert url in str(value) and "attempt" in str(value)
                else:
                    scored += 1
                    assert value == expected
    injected, counts = server.injected, remote.counts
    by_kind = Counter()
    for kind, number in injected.items():
        by_kind[KINDS.get(kind, kind)] += number
    assert sum(injected.values()) - injected["ok"] == n
    assert {kind: counts[kind] for kind in set(KINDS.values())} == {kind: by_kind[kind] for kind in set(KINDS.values())}
    assert counts["requests"] + counts["retries"] - counts["not sent"] == sum(injected.values())
    assert scored == 2 * injected["ok"] and failed == 2 * counts["failed"] > 0


@pytest.mark.parametrize("kind", [*KINDS, "huge"])
def test_each_fault_is_retried_and_told(kind):
    server = Faulty(scorer, chain([kind], repeat("ok")), spoil, hold=0.8)
    with server.serving() as url:
        remote = Remote(url, timeout=0.5, backoff=0.01)
        assert remote(pictures(2), ["a", "b"], [{}, {}]) == worth(pictures(2), ["a", "b"], [{}, {}])
        assert remote.counts == {"requests": 1, "retries": 1, KINDS.get(kind, "malformed"): 1, "null": 0}
    server = Faulty(scorer, repeat(kind), spoil, hold=0.8)
    with server.serving() as url:
        began = time.monotonic()
        values = Remote(url, timeout=0.5, retries=0)(pictures(2), ["a", "b"], [{}, {}])
        assert all(isinstance(value, Exception) and "attempt 1 of 1" in str(value) for value in values)
        assert time.monotonic() - began < 1.5


def test_a_dead_server_costs_one_round_of_back_off_and_a_living_one_is_found_again():
    port = free_port()
    remote = Remote(f"http://127.0.0.1:{port}", retries=3, backoff=0.05, batch=1, concurrency=1)

    def call():
        before, began = Counter(remote.counts), time.monotonic()
        values = remote(pictures(4), ["p"] * 4, [{}] * 4)
        return values, {key: remote.counts[key] - before[key] for key in ("requests", "retries", "failed")}, began

    values, counts, began = call()
    assert all("connection" in str(value).lower() for value in values)
    assert counts == {"requests": 4, "retries": 3, "failed": 4}
    assert 0.35 <= time.monotonic() - began < 1.5  # 0.05 + 0.1 + 0.2
    assert call()[1] == {"requests": 4, "retries": 0, "failed": 4}
    server = Faulty(scorer, iter(["ok", "500", "ok", "ok", "ok"]), spoil)
    with server.serving() as url:
        object.__setattr__(remote, "url", url)
        values, counts, _ = call()
        assert values == worth(pictures(4), ["p"] * 4, [{}] * 4)
        assert counts == {"requests": 4, "retries": 1, "failed": 0}  # the first try that succeeded earned the retry


class Fixed(BaseHTTPRequestHandler):
    """Gives the next of `answers`, (status, headers, body), to whatever is asked."""

    answers = iter(())

    def do_GET(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        status, headers, body = next(self.answers)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_): ...


@pytest.fixture
def fixed():
    """Makes the url of a server that gives these answers in turn."""
    servers = []

    def start(*answers):
        server = HTTPServer(("127.0.0.1", 0), type("Answers", (Fixed,), {"answers": cycle(answers)}))
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_other_refusals_are_not_retried(fixed):
    remote = Remote(fixed((413, {}, b'{"error": "too\nlarge"}')), batch=1)
    values = remote(pictures(2), ["a", "b"], [{}, {}])
    assert all('HTTP 413: {"error": "too large"} (attempt 1 of 5)' in str(value) for value in values)
    assert remote.counts == {"requests": 2, "http 413": 2, "failed": 2, "null": 0}


@pytest.mark.parametrize(("after", "timeout", "low", "high"), [("1", 5, 1, 2), ("3600", 0.6, 0.6, 1.5), ("soon", 5, 0, 0.5)])
def test_retry_after_is_honoured_up_to_the_timeout(fixed, after, timeout, low, high):
    url = fixed((429, {"Retry-After": after}, b""), (200, {}, b'{"scores": [2]}'))
    began = time.monotonic()
    assert Remote(url, timeout=timeout, backoff=0.01)(pictures(1), ["a"], [{}]) == [2.0]
    assert low <= time.monotonic() - began < high


def test_null_is_an_exception_with_the_servers_reason(fixed):
    remote = Remote(fixed((200, {}, b'{"scores": [1.5, null, null], "reasons": {"1": "no eyes"}}')))
    values = remote(pictures(3), ["a"] * 3, [{}] * 3)
    assert values[0] == 1.5 and str(values[1]) == "no eyes" and "no reason" in str(values[2])
    assert remote.counts == {"requests": 1, "null": 2}
    assert [f.index for f in score(Scorer("far", remote), pictures(3), ["a"] * 3, [{}] * 3).failures] == [1, 2]


def test_what_cannot_be_sent_costs_no_other_picture_its_score():
    images, metadata = pictures(4), [{}, {}, {"x": float("nan")}, {"bonus": 1}]
    images[1, 0, 0, 0] = float("nan")
    with Faulty(scorer, repeat("ok"), spoil).serving() as url:
        remote = Remote(url)
        values = remote(images, ["p"] * 4, metadata)
        assert remote(images[:0], [], []) == []
    assert "finite" in str(values[1]) and "metadata" in str(values[2])
    assert [values[0], values[3]] == worth(images[[0, 3]], ["p"] * 2, [{}, {"bonus": 1}])
    assert remote.counts["requests"] == 1


def test_an_endless_answer_is_given_up(fixed):
    values = Remote(fixed((200, {}, b"[" + b" " * (17 << 20))), retries=0)(pictures(1), ["a"], [{}])
    assert "bytes" in str(values[0])


def test_any_number_of_threads():
    with Faulty(scorer, cycle(["ok", "500", "ok"]), spoil).serving() as url:
        remote, results = Remote(url, retries=20, backoff=0.001, batch=2), {}

        def call(seed):
            results[seed] = remote(pictures(6, seed=seed), ["p"] * 6, [{}] * 6)

        threads = [threading.Thread(target=call, args=(seed,)) for seed in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert results == {seed: worth(pictures(6, seed=seed), ["p"] * 6, [{}] * 6) for seed in range(16)}
    assert remote.counts["requests"] == 48 and remote.counts["failed"] == 0


def test_load_says_what_is_wrong_in_one_line(fixed):
    wrong = {
        "no scorer at": f"http://127.0.0.1:{free_port()}",
        "needs a url": "",
        "HTTP 404": fixed((404, {}, b"nothing\nhere")),
        "not a scorer": fixed((200, {}, b"<html>")),
        "not name one": fixed((200, {}, b'{"status": "ok", "scorer": 3}')),
        "its /health": fixed((200, {}, b'{"status": "ok", "scorer": {"name": 3}}')),
        "correct the url": "no address",
        "peer closed": fixed((200, {"Content-Length": "5"}, b"")),
    }
    for reason, url in wrong.items():
        with pytest.raises(UserError, match=reason) as error:
            Remote(url, timeout=0.5).load()
        assert "\n" not in str(error.value)
    remote = Remote(fixed((200, {}, b'{"status": "ok", "scorer": {"name": "s", "batch": 3}}')))
    remote.load()
    assert remote.id == {"url": remote.url, "scorer": {"name": "s", "batch": 3}}


@pytest.mark.parametrize("settings", [{"timeout": 0}, {"retries": -1}, {"batch": 0}, {"timeout": float("inf")}, {"port": 3}])
def test_settings_are_checked(settings):
    with pytest.raises(ValidationError):
        Remote("http://x", **settings)
