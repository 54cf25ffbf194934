"""The server against real connections: requests that break the format, bodies that are too large, many at once."""

import asyncio
import base64
import io
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import dataclass

import httpx
import pytest
import torch
from faulty import serving
from PIL import Image

from neighbor_grpo.errors import UserError
from neighbor_grpo.rewards.http import protocol
from neighbor_grpo.rewards.http.client import Remote
from neighbor_grpo.rewards.http.server import describe, make_app, serve
from neighbor_grpo.rewards.score import score
from neighbor_grpo.rewards.scorer import make_scorer


def pictures(n, size=8, seed=0):
    """Pixels in steps of 1/255, as they arrive."""
    return torch.randint(256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed)).float() / 255


def worth(images, prompts, metadata):
    """A number that any change of a pixel, a prompt or the metadata changes."""
    weights = torch.linspace(0.5, 1.5, images[0].numel(), dtype=torch.float64)
    return [
        float(image.double().flatten() @ weights) + len(prompt) + extra.get("bonus", 0)
        for image, prompt, extra in zip(images, prompts, metadata, strict=True)
    ]


def body(images=None, prompts=("a", "b"), metadata=({}, {}), **other):
    images = [encoded(image) for image in pictures(2)] if images is None else images
    return json.dumps({"images": images, "prompts": prompts, "metadata": metadata, **other})


def encoded(image):
    return base64.b64encode(protocol.png(image)).decode()


def saved(mode, kind="PNG", size=(8, 8)):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def header(width, height):
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def bomb(*headers):
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(headers) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))).decode()


@pytest.fixture(scope="module")
def url():
    with serving(make_app(make_scorer("worth", worth), max_bytes=100_000, max_pixels=10_000)) as at:
        yield at


def test_scores_by_hand(url):
    images = pictures(2)
    answer = httpx.post(f"{url}/score", content=body(metadata=[{}, {"bonus": 3}], more="ignored"))
    expected = worth(images, ["a", "b"], [{}, {"bonus": 3}])
    assert answer.status_code == 200
    assert answer.json() == {"scores": expected, "reasons": {}, "scorer": {"name": "worth"}}
    assert httpx.get(f"{url}/health").json() == {"scorer": {"name": "worth"}, "status": "ok"}


def test_pictures_survive_the_way_except_for_rounding():
    images = torch.rand(3, 3, 5, 7, generator=torch.Generator().manual_seed(1))
    items = [protocol.item(image, "p", {"n": n}) for n, image in enumerate(images)]
    back = protocol.read_request(protocol.request(items))
    assert torch.equal(back.images(), (images * 255).round() / 255)
    assert torch.equal(torch.cat([back.images(rows) for rows in back.parts(70)]), back.images())  # 2 of 5 x 7, then 1
    assert back.prompts == ["p"] * 3 and back.metadata == [{"n": 0}, {"n": 1}, {"n": 2}]


@pytest.mark.parametrize(
    ("sent", "status", "reason"),
    [
        ("", 400, "malformed JSON"),
        ("{", 400, "malformed JSON"),
        (b"\xff\xfe\xfd", 400, "malformed JSON"),
        ("[" * 90_000, 400, "nested"),
        ("[]", 400, "not an object"),
        ("{}", 400, "images is not a list"),
        (body(metadata=[{"x": float("nan")}, {}]), 400, "NaN is not allowed"),
        (body(prompts="ab"), 400, "prompts is not a list"),
        (body(prompts=["a", 1]), 400, "prompts[1]"),
        (body(metadata=[{}, []]), 400, "metadata[1]"),
        (body(images=[1, 2]), 400, "images[0]"),
        (body(images=[], prompts=[], metadata=[]), 400, "images is empty"),
        (body(prompts=["a"]), 422, "2 images, 1 prompts and 2 metadata"),
        (body(metadata=[{}] * 3), 422, "3 metadata"),
        (body(images=["!", "!"]), 400, "images[0] is not base64"),
        (body(images=["é", "!"]), 400, "images[0] is not base64"),
        (body(images=["", ""]), 400, "images[0] is not a PNG"),
        (body(images=["/etc/passwd+", "abcd"]), 400, "images[0] is not a PNG"),
        (body(images=[encoded(pictures(1)[0]), saved("RGB", "JPEG")]), 400, "images[1] is not a PNG"),
        (body(images=[saved("RGBA")] * 2), 400, "images[0] is not an 8-bit RGB"),
        (body(images=[saved("L")] * 2), 400, "images[0] is not an 8-bit RGB"),
        (body(images=[saved("I;16")] * 2), 400, "images[0] is not an 8-bit RGB"),
        (body(images=[encoded(pictures(1)[0]), encoded(pictures(1, 9)[0])]), 400, "images[1] is 9 x 9 and images[0] 8 x 8"),
        (body(images=[encoded(pictures(1)[0])[:200]] * 2), 400, "images[0] is a damaged PNG"),
        (body(images=[saved("RGB", size=(100, 51))] * 2), 400, "10200 pixels"),
        (body(images=[bomb(header(60_000, 60_000))] * 2), 400, "3600000000 pixels each"),
        (body(images=[bomb(header(8, 8), header(10, 10))] * 2), 400, "damaged PNG"),
        (body(images=[bomb(header(0, 8))] * 2), 400, "0 pixels"),
    ],
)
def test_requests_that_break_the_format(url, sent, status, reason):
    answer = httpx.post(f"{url}/score", content=sent)
    assert answer.status_code == status
    assert reason in answer.json()["error"]
    assert "NaN" not in answer.text.replace("NaN is not allowed", "")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/score", 405),
        ("POST", "/health", 405),
        ("GET", "/", 404),
        ("POST", "/score/", 404),
        ("GET", "/../etc/x", 404),
    ],
)
def test_other_paths_and_methods(url, method, path, status):
    answer = httpx.request(method, url + path)
    assert answer.status_code == status and answer.json()["error"]


@pytest.mark.parametrize("head", ["Content-Length: 100001", "Transfer-Encoding: chunked"])
def test_a_body_is_refused_before_all_of_it_is_sent(url, head):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(f"POST /score HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode())
        if "chunked" in head:
            connection.sendall(b"186a1\r\n" + b" " * 100_001 + b"\r\n")  # a chunk too many, and no end
        answer = ""
        while "}" not in answer:
            answer += connection.recv(4096).decode()
    assert answer.startswith("HTTP/1.1 413") and "100000 bytes" in answer


def test_a_reward_that_fails_is_null_with_a_reason_and_no_folders():
    def picky(images, prompts, metadata):
        if "bad" in prompts:
            raise FileNotFoundError(2, "No such file", "/home/some one/models/weights.pt")
        return [float("nan") if prompt == "nan" else 1.0 for prompt in prompts]

    prompts = ["good", "bad", "nan", "good", "good"]
    with serving(make_app(make_scorer("rewards/mine.py:picky", picky))) as url:
        sent = protocol.request([protocol.item(image, prompt, {}) for image, prompt in zip(pictures(5), prompts, strict=True)])
        answer = httpx.post(f"{url}/score", content=sent)
    assert answer.status_code == 200 and answer.json()["scores"] == [1.0, None, None, 1.0, 1.0]
    assert set(answer.json()["reasons"]) == {"1", "2"}
    assert answer.json()["reasons"]["1"] == "FileNotFoundError: [Errno 2] No such file: 'weights.pt'"
    assert "nan" in answer.json()["reasons"]["2"] and answer.json()["scorer"] == {"name": "mine.py:picky"}


def test_settings_are_told_without_folders(tmp_path):
    @dataclass
    class Settings:
        weights: str = str(tmp_path / "w.safetensors")
        hub: str = "laion/clip"
        sizes: tuple = (1, 2.5, float("inf"))

        def __call__(self, images, prompts, metadata): ...

    assert describe(make_scorer("s", Settings())) == {
        "weights": "w.safetensors",
        "hub": "laion/clip",
        "sizes": [1, 2.5, "inf"],
        "name": "s",
    }


@pytest.mark.slow
def test_two_hundred_requests_at_once_are_all_answered_by_one_thread():
    inside, peak, threads, all_here = [], [0], set(), threading.Event()

    def slow_worth(images, prompts, metadata):
        assert all_here.wait(20), "the requests did not come at once"
        inside.append(None)
        threads.add(threading.get_ident())
        peak[0] = max(peak[0], len(inside))
        time.sleep(0.001)
        inside.pop()
        return worth(images, prompts, metadata)

    scorer, waiting = make_app(make_scorer("slow", slow_worth)), []

    async def counted(scope, receive, send):
        if scope["type"] == "http":
            waiting.append(None)
            if len(waiting) == 200:
                all_here.set()
        await scorer(scope, receive, send)

    images, prompts = pictures(1600, 32), [f"{n}" for n in range(1600)]
    metadata = [{"bonus": n} for n in range(1600)]
    with serving(counted) as url:
        remote = Remote(url, batch=8, concurrency=200)
        values = remote(images, prompts, metadata)
    assert values == worth(images, prompts, metadata)
    assert peak[0] == 1 and len(threads) == 1
    assert remote.counts["requests"] == 200 and not remote.counts["retries"] + remote.counts["failed"]


def test_a_request_whose_client_has_gone_is_not_scored():
    began, go, seen = threading.Event(), threading.Event(), []

    def waiting(images, prompts, metadata):
        began.set()
        seen.extend(prompts)
        assert go.wait(10)
        return [0.0] * len(prompts)

    def sent(prompt):
        return protocol.request([protocol.item(pictures(1)[0], prompt, {})])

    async def scene(url):
        async with httpx.AsyncClient() as client:
            first = asyncio.create_task(client.post(f"{url}/score", content=sent("first"), timeout=10))
            await asyncio.to_thread(began.wait, 10)
            with pytest.raises(httpx.ReadTimeout):
                await client.post(f"{url}/score", content=sent("gone"), timeout=0.2)
            await asyncio.sleep(0.1)
            go.set()
            await first
            await client.post(f"{url}/score", content=sent("last"), timeout=10)

    with serving(make_app(make_scorer("waiting", waiting))) as url:
        asyncio.run(scene(url))
    assert seen == ["first", "last"]


def test_serves_until_interrupted_and_warns_of_hosts_that_are_not_loopback(tmp_path):
    code = """if True:
        from neighbor_grpo.rewards import jpeg
        from neighbor_grpo.rewards.http import server
        from neighbor_grpo.rewards.scorer import make_scorer
        for host in "127.0.0.1", "localhost", "0.0.0.0":
            server.serve(make_scorer("jpeg", jpeg.jpeg_compressibility), host, 0)
    """
    errors = tmp_path / "errors"
    with errors.open("w") as file:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=file, text=True)
    try:
        for host in ("127.0.0.1", "localhost", "0.0.0.0"):
            line = process.stdout.readline()
            assert line.startswith(f"scoring jpeg on http://{host}:"), line
            remote = Remote(f"http://127.0.0.1:{line.split(':')[-1].strip()}")
            remote.load()
            assert remote.id["scorer"] == {"name": "jpeg"}
            assert ("without authentication" in errors.read_text()) == (host == "0.0.0.0")
            process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()


def test_what_cannot_be_served(url):
    with pytest.raises(UserError, match="cannot listen on"):
        serve(make_scorer("worth", worth), port=int(url.split(":")[-1]))

    for attribute, reason in {"groupwise": "groups", "of_videos": "videos"}.items():

        def reward(images, prompts, metadata): ...

        setattr(reward, attribute, True)
        with pytest.raises(UserError, match=reason):
            make_app(make_scorer("mine", reward))


def test_a_remote_reward_scores_as_the_local_one(url):
    images, prompts, metadata = pictures(5), list("abcde"), [{}] * 5
    there, here = (score(make_scorer("worth", reward), images, prompts, metadata) for reward in (Remote(url, batch=2), worth))
    assert torch.equal(there.values, here.values) and not there.failures
