"""A server process under hostile and careless clients: memory, the others' waiting time, and the end on a signal."""

import base64
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from faulty import serving
from PIL import Image, PngImagePlugin
from test_server import body, pictures, saved, worth

from neighbor_grpo.errors import UserError
from neighbor_grpo.rewards.http import intake, protocol
from neighbor_grpo.rewards.http.server import make_app, serve
from neighbor_grpo.rewards.scorer import make_scorer

CODE = """if True:
    import os, time
    from neighbor_grpo.rewards.http.server import serve
    from neighbor_grpo.rewards.scorer import Scorer

    def reward(images, prompts, metadata):
        if "hang" in prompts:
            time.sleep(600)
        return [float(n) for n in images.mean((1, 2, 3))]

    serve(Scorer("r", reward), port=0)
    print("ended", flush=True)
    os._exit(0)
"""


@contextmanager
def process():
    """A server's process and the url."""
    server = subprocess.Popen([sys.executable, "-c", CODE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield server, server.stdout.readline().split()[-1]
    finally:
        server.kill()
        server.communicate()


@pytest.fixture(scope="module")
def running():
    with process() as (server, url):
        httpx.post(f"{url}/score", content=body())  # warm
        yield server, url


def memory(server, key="VmHWM"):
    """Bytes of the resident set: at its peak, or now."""
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) << 10


def half(url, length, sent=b""):
    """A client that has sent only a part of a body of `length` bytes."""
    host, port = url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)), timeout=3)
    client.sendall(f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode())
    with suppress(TimeoutError):  # the server does not take it
        client.sendall(sent)
    return client


def small(url):
    """The seconds that a small request and GET /health take."""
    began = time.monotonic()
    assert httpx.post(f"{url}/score", content=body(), timeout=30).status_code == 200
    assert httpx.get(f"{url}/health", timeout=30).status_code == 200
    return time.monotonic() - began


def test_unfinished_bodies_are_bounded_together_and_block_nobody(running):
    server, url = running
    before, clients = memory(server, "VmRSS"), []
    threads = [threading.Thread(target=lambda: clients.append(half(url, 150 << 20, b" " * (149 << 20)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert small(url) < 5
    assert memory(server) - before < 400 << 20  # two of them fit into 320 MiB, not four
    for client in clients:
        client.close()


@pytest.mark.parametrize(
    "sent",
    [
        b'{"images": [], "prompts": [], "metadata": [' + b"{}," * (7 << 20) + b"{}]}",
        b'{"images": [' + b"[" * (20 << 20),
        b'{"images": [' + b'"",' * (7 << 20) + b'""]}',
        b'{"images": ["' + b"x" * (20 << 20) + "\U0001f600".encode() + b'"], "prompts": [""], "metadata": [{}]}',
        json.dumps({"images": ["x" * (20 << 20) + "\U0001f600"], "prompts": [""], "metadata": [{}]}).encode(),
        b'{"images": [' + b'"' * (20 << 20),
        json.dumps({"images": [saved("RGB")], "prompts": ["x" * (20 << 20)], "metadata": [{}]}).encode(),
        body(images=[saved("RGB", size=(8192, 8192))] * 2).encode(),
    ],
    ids=["objects", "nesting", "texts", "wide", "escaped", "quotes", "prompt", "picture"],
)  # fmt: skip
def test_a_request_of_any_content_is_refused_in_little_memory(running, sent):
    server, url = running
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")  # the peak begins anew
    before = memory(server)
    answer = httpx.post(f"{url}/score", content=sent, timeout=30)
    assert answer.status_code == 400 and re.search(": (send|write)|nested|not a", answer.json()["error"])
    assert memory(server) - before < 4 * len(sent) + (30 << 20)


def test_chunks_of_text_that_unpack_to_more_are_not_unpacked(running):
    server, url = running
    text, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    for n in range(20):
        text.add_text(f"k{n}", "x" * (1 << 24), zip=True)
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=text)
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")
    before = memory(server)
    sent = body(images=[base64.b64encode(buffer.getvalue()).decode()] * 2)
    assert httpx.post(f"{url}/score", content=sent, timeout=30).status_code in (200, 400)
    assert memory(server) - before < 100 << 20  # not 320 MiB, nor 640


def test_a_large_request_is_scored_in_parts_between_which_others_are_scored():
    order, sizes = [], []

    def reward(images, prompts, metadata):
        order.append(prompts[0])
        sizes.append(len(images))
        time.sleep(0.2)
        return [float("nan") if prompt == "bad" else 1.0 for prompt in prompts]

    large = saved("RGB", size=(2048, 2048))
    with serving(make_app(make_scorer("r", reward))) as url:
        sent = body(images=[large] * 8, prompts=["large"] * 5 + ["bad"] * 3, metadata=[{}] * 8)
        answers = []
        thread = threading.Thread(target=lambda: answers.append(httpx.post(f"{url}/score", content=sent, timeout=60)))
        thread.start()
        while not order:
            time.sleep(0.01)
        small(url)
        thread.join()
    assert max(sizes) == 4 and order.index("a") < len(order) - 1
    assert answers[0].json()["scores"] == [1.0] * 5 + [None] * 3 and set(answers[0].json()["reasons"]) == {"5", "6", "7"}


def test_slow_senders_time_out_and_large_ones_wait_for_room(monkeypatch):
    monkeypatch.setattr(intake, "_IDLE", 0.5)
    with serving(make_app(make_scorer("worth", worth), max_bytes=100_000)) as url:
        began, first = time.monotonic(), half(url, 100_000, b" ")  # has all the room that a second one would need
        answer = httpx.post(f"{url}/score", content=body() + " " * 50_000, timeout=10)
        assert answer.status_code == 200 and 0.4 < time.monotonic() - began < 5
        assert b"408" in first.recv(1000) and first.recv(1000) == b""
        dripping = half(url, 1000)
        with pytest.raises(OSError):  # a byte now and then is not enough
            for _ in range(200):
                dripping.sendall(b" ")
                time.sleep(0.05)
        monkeypatch.setattr(intake, "_PATIENCE", 0.2)
        stuck = half(url, 100_000, b" ")
        answer = httpx.post(f"{url}/score", content=body() + " " * 50_000, timeout=10)
        assert answer.status_code == 503 and answer.headers["retry-after"]
        stuck.close()
        assert small(url) < 5


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "application/json; charset=utf-8"}, 200),
        ({"content-type": "Application/JSON"}, 200),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({"content-encoding": "gzip"}, 415),
    ],
)
def test_only_plain_json_is_read(running, headers, status):
    answer = httpx.post(f"{running[1]}/score", content=body(), headers=headers)
    assert answer.status_code == status and (status == 200 or answer.json()["error"])


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_the_server_within_5_seconds_whatever_its_clients_do(number):
    with process() as (server, url):
        hang = protocol.request([protocol.item(pictures(1)[0], "hang", {})])
        clients = [half(url, 1000), half(url, 1 << 20, b" " * 1000), half(url, len(hang), hang)]
        clients.append(socket.create_connection(clients[0].getpeername()))
        time.sleep(0.3)
        began = time.monotonic()
        server.send_signal(number)
        assert server.wait(20) == 0
        assert time.monotonic() - began < 5
        assert not server.stderr.read()
        for client in clients:
            client.close()


def test_a_second_signal_ends_it_at_once():
    with process() as (server, url):
        client = half(url, 1000)
        time.sleep(0.3)
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0 and time.monotonic() - began < 1.9  # less than requests would have
        client.close()


@pytest.mark.parametrize("host", ["nowhere.invalid", "256.0.0.1", "a" * 70, "x y"])
def test_a_host_that_is_not_one_is_refused(host):
    with pytest.raises(UserError, match="choose another host or port"):
        serve(make_scorer("worth", worth), host, 0)
