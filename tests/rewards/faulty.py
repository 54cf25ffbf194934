"""Servers on loopback for the tests: the real one in a thread, and one that answers wrongly by a schedule."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import uvicorn

KINDS = {  # what is injected -> what a client is to count
    "500": "http 500",
    "429": "http 429",
    "nan": "malformed",
    "wrong": "malformed",
    "garbage": "malformed",
    "dropped": "connection",
    "truncated": "connection",
    "slow": "timeout",
    "drip": "timeout",
}


@contextmanager
def serving(app) -> Iterator[str]:
    """The url of an ASGI application."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


class Handler(BaseHTTPRequestHandler):
    """Answers by the schedule of `faulty`."""

    faulty: "Faulty"
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        self.reply(json.dumps({"scorer": {"name": "faulty"}, "status": "ok"}).encode())

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        with self.faulty.lock:
            kind = next(self.faulty.schedule)
            self.faulty.injected[kind] += 1
            self.faulty.served.append((self.path, body, dict(self.headers)))
        getattr(self, f"do_{kind}", self.do_spoilt)(kind, self.faulty.answer(self.path, body))

    def do_ok(self, kind, right):
        self.reply(right)

    def do_spoilt(self, kind, right):
        self.reply(self.faulty.spoil(kind, right))

    def do_500(self, kind, right):
        self.reply(b"Internal Server Error", 500)

    def do_429(self, kind, right):
        self.reply(b"{}", 429)

    def do_dropped(self, kind, right):
        self.close_connection = True

    def do_truncated(self, kind, right):
        self.reply(right, length=len(right) + 10)
        self.close_connection = True

    def do_slow(self, kind, right):
        time.sleep(self.faulty.hold)
        self.reply(right)

    def do_drip(self, kind, right):
        """Never silent for long, and never finished."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        end = time.monotonic() + self.faulty.hold
        while time.monotonic() < end:
            self.wfile.write(b".")
            time.sleep(0.05)
        self.close_connection = True

    def reply(self, body, status=200, length=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request, client_address):
        pass  # the client hung up


class Faulty:
    """Each POST takes the next kind of the schedule: "ok", or one of KINDS.

    answer makes the right body from the path and the request's body, spoil a wrong one (by kind) from the right one.
    """

    def __init__(self, answer: Callable[[str, bytes], bytes], schedule: Iterator[str], spoil: Callable, hold: float = 2.0):
        self.answer, self.schedule, self.spoil, self.hold = answer, schedule, spoil, hold
        self.injected: Counter[str] = Counter()
        self.served: list[tuple[str, bytes, dict]] = []  # path, body and headers of each POST
        self.lock = threading.Lock()

    @contextmanager
    def serving(self) -> Iterator[str]:
        server = Server(("127.0.0.1", 0), type("Own", (Handler,), {"faulty": self}))
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
