"""Measure what hostile or careless clients cost a scorer server: memory, the others' waiting time, and the time to stop.

    python benchmarks/server_limits.py

Each row is a fresh `neighbor-grpo rewards serve jpeg_compressibility` on this machine.  While the client of the row does its
worst, another client sends a picture of 64 x 64 and GET /health again and again.  Memory is the peak of the resident set above
that of the idle server.  Linux only.
"""

import base64
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

Attack = Callable[[int], None]
SECONDS = 6.0  # how long the small requests are sent


@dataclass
class Server:
    """Hold a server's process and port."""

    process: subprocess.Popen
    port: int
    idle: int = field(default=0)  # bytes

    @property
    def peak(self) -> int:
        """Return the peak of the resident set in bytes."""
        return _status(self.process.pid, "VmHWM")


def _status(pid: int, key: str) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


@contextmanager
def served() -> Iterator[Server]:
    """Start a server, warm it up, and kill it at the end."""
    command = [sys.executable, "-m", "neighbor_grpo", "rewards", "serve", "jpeg_compressibility", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        server = Server(process, int(process.stdout.readline().split(":")[-1]))  # type: ignore[union-attr]  # it is a pipe
        httpx.post(f"http://127.0.0.1:{server.port}/score", content=request(64))
        server.idle = _status(process.pid, "VmRSS")
        yield server
    finally:
        process.kill()
        process.communicate()


def request(side: int, n: int = 1) -> bytes:
    """Write a request with n pictures; the large ones are black, so that their files are small."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8) if side < 1024 else 0
    image = Image.fromarray(pixels) if side < 1024 else Image.new("RGB", (side, side))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    text = base64.b64encode(buffer.getvalue()).decode()
    return json.dumps({"images": [text] * n, "prompts": [""] * n, "metadata": [{}] * n}).encode()


def half_sent(port: int, length: int, sent: int) -> socket.socket:
    """Announce a body of `length` bytes and send `sent` of them, or as many as the server takes within 5 s."""
    client = socket.create_connection(("127.0.0.1", port), timeout=5)
    client.sendall(f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode())
    with suppress(OSError):
        for _ in range(sent >> 20):
            client.sendall(b" " * (1 << 20))
    return client


def bodies(port: int) -> None:
    """Leave four bodies of 150 MB without their last byte."""
    open_clients.extend(_at_once(lambda: half_sent(port, 150_000_001, 150_000_000), 4))


def _at_once(work: Callable[[], socket.socket], n: int) -> list[socket.socket]:
    results: list[socket.socket] = []
    threads = [threading.Thread(target=lambda: results.append(work())) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def post(body: bytes) -> Attack:
    """Return an attack that posts a body once."""

    def attack(port: int) -> None:
        with suppress(httpx.HTTPError):
            httpx.post(f"http://127.0.0.1:{port}/score", content=body, timeout=60)

    return attack


open_clients: list[socket.socket] = []
ATTACKS: dict[str, Callable[[], Attack]] = {
    "nothing": lambda: lambda port: None,
    "4 bodies of 150 MB, not ended": lambda: bodies,
    "22 MiB of {},": lambda: post(b'{"images": [], "prompts": [], "metadata": [' + b"{}," * ((22 << 20) // 3) + b"{}]}"),
    "a text of 60 MiB with an emoji": lambda: post(
        json.dumps({"images": ["x" * (60 << 20) + "😀"], "prompts": [""], "metadata": [{}]}).encode()
    ),
    "a picture of 8192 x 8192": lambda: post(request(8192)),
    "4 pictures of 4096 x 4096": lambda: post(request(4096, 4)),
    "200 connections without a request": lambda: (
        lambda port: open_clients.extend(socket.create_connection(("127.0.0.1", port)) for _ in range(200))
    ),
}


def waiting(port: int, attack: Attack) -> tuple[float, float]:
    """Return the longest waits in seconds of a small request and of GET /health while the attack goes on."""
    attacker = threading.Thread(target=attack, args=(port,), daemon=True)
    attacker.start()
    longest = {"score": 0.0, "health": 0.0}
    small, end = request(64), time.monotonic() + SECONDS

    def repeat(name: str, send: Callable[[httpx.Client], object]) -> None:
        with httpx.Client(timeout=60) as client:
            while time.monotonic() < end or (attacker.is_alive() and time.monotonic() < end + 60):
                began = time.monotonic()
                send(client)
                longest[name] = max(longest[name], time.monotonic() - began)
                time.sleep(0.05)

    url = f"http://127.0.0.1:{port}"
    threads = [
        threading.Thread(target=repeat, args=("score", lambda client: client.post(f"{url}/score", content=small))),
        threading.Thread(target=repeat, args=("health", lambda client: client.get(f"{url}/health"))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return longest["score"], longest["health"]


def stop(process: subprocess.Popen) -> str:
    """Send SIGTERM and return the seconds until the end and the exit code."""
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    try:
        code = process.wait(20)
    except subprocess.TimeoutExpired:
        return "> 20 s"
    return f"{time.monotonic() - began:.1f} s, exit code {code}"


def main() -> None:
    """Print the table."""
    print("| a client sends | memory | a small request waits | /health waits | SIGTERM while a body is unfinished |")
    print("|---|---|---|---|---|", flush=True)
    for name, make in ATTACKS.items():
        attack = make()
        with served() as server:
            score, health = waiting(server.port, attack)
            memory = (server.peak - server.idle) / 2**20
            client = half_sent(server.port, 1000, 0)
            stopped = stop(server.process)
            client.close()
        while open_clients:
            open_clients.pop().close()
        print(f"| {name} | +{memory:.0f} MiB | {score:.2f} s | {health:.2f} s | {stopped} |", flush=True)


if __name__ == "__main__":
    main()
