"""A server that scores over HTTP, on another machine or in another environment than the training."""

import asyncio
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import FrameType
from typing import Any, TypeVar

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from neighbor_grpo.console import say
from neighbor_grpo.errors import UserError
from neighbor_grpo.files.listening import is_loopback, listen, url_of
from neighbor_grpo.rewards.http import protocol
from neighbor_grpo.rewards.http.intake import Intake
from neighbor_grpo.rewards.score import Scores, score
from neighbor_grpo.rewards.scorer import Scorer

T = TypeVar("T")
_PART = 2**24  # pixels that are scored in one turn: 16 pictures of 1024 x 1024
_CONNECTIONS = 512  # at once; others get 503
_GRACE = 2.0  # seconds that requests have to end when the server stops
_LAST = 4.0  # seconds after which a server that was to stop ends in any case
_FOLDERS = re.compile(  # the directories of an absolute, home or dotted path, in quotes (with spaces) or without
    r"""(?<=['"])(?:[A-Za-z]:|~|\.{1,2})?[\\/][^'"]*[\\/]|(?<![\w:/.\\])(?:[A-Za-z]:|~|\.{1,2})?[\\/](?:[^\s'"]*[\\/])?"""
)
_GONE = 499  # status of an answer that no client reads


def make_app(scorer: Scorer, *, max_bytes: int = 256 << 20, max_pixels: int = protocol.MAX_PIXELS) -> Starlette:
    """Make the application with GET /health and POST /score; `state.service` is the `Service` behind it.

    max_bytes limits the body of a request, and with a quarter more all bodies together; max_pixels limits all pictures of a
    request.  Raises UserError if requests cannot carry what the reward needs.
    """
    if scorer.groupwise:
        raise UserError(f"reward {scorer.name} compares the pictures of a prompt, and requests have no groups: do not serve it")
    if scorer.of_videos:
        raise UserError(f"reward {scorer.name} scores videos, and requests carry pictures: do not serve it")
    service = Service(scorer, Intake(max_bytes, max_bytes + max_bytes // 4), max_pixels)

    async def refuse(request: Request, error: Any) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    async def gone(request: Request, error: Any) -> Response:
        return Response(status_code=_GONE)

    routes = [Route("/health", service.health, methods=["GET"]), Route("/score", service.scores, methods=["POST"])]
    starlette = Starlette(routes=routes, exception_handlers={HTTPException: refuse, ClientDisconnect: gone})
    starlette.router.redirect_slashes = False
    starlette.state.service = service
    return starlette


class Service:
    """Answer requests by a scorer.

    One thread reads requests, and in another one they take turns to be decoded and scored, because models are not re-entrant.
    A large request is scored in parts, so that the others need not wait for all of it.  Once `stopping` is set, requests that
    do not end soon are refused.
    """

    def __init__(self, scorer: Scorer, intake: Intake, max_pixels: int) -> None:
        self.scorer, self.intake, self.max_pixels = scorer, intake, max_pixels
        self.description = describe(scorer)
        self.reader, self.worker = ThreadPoolExecutor(1, "reader"), ThreadPoolExecutor(1, "scorer")
        self.turn, self.stopping = asyncio.Lock(), asyncio.Event()

    async def health(self, request: Request) -> Response:
        """Answer who scores."""
        return JSONResponse({"scorer": self.description, "status": "ok"})

    async def scores(self, request: Request) -> Response:
        """Answer the scores of a request.  Raises HTTPException for one that breaks the format, or when the server stops."""
        work, stop = asyncio.create_task(self._scores(request)), asyncio.create_task(self.stopping.wait())
        try:
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({work}, timeout=_GRACE)
            if not work.done():
                raise HTTPException(503, "the server is stopping")
            return work.result()
        finally:
            work.cancel()
            stop.cancel()

    async def _scores(self, request: Request) -> Response:
        _check_type(request)
        async with self.intake.room(request) as read:
            sent = await _in_thread(self.reader, protocol.read_request, await read(), self.max_pixels)
            parts = [(rows.start, await self._score(request, sent, rows)) for rows in sent.parts(_PART)]
        values = torch.cat([part.values for _, part in parts])
        reasons = {
            start + failure.index: _without_folders(failure.reason)[:500] for start, part in parts for failure in part.failures
        }
        return Response(protocol.answer(Scores(values), self.description, reasons), media_type="application/json")

    async def _score(self, request: Request, sent: protocol.Request, rows: slice) -> Scores:
        def work() -> Scores:
            return score(self.scorer, sent.images(rows), sent.prompts[rows], sent.metadata[rows])

        async with self.turn:
            if await request.is_disconnected():  # the client gave up while this request waited
                raise ClientDisconnect
            return await _in_thread(self.worker, work)


async def _in_thread(thread: ThreadPoolExecutor, work: Callable[..., T], *arguments: Any) -> T:
    """Run `work` in a thread.  Raises HTTPException if the request breaks the format."""
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, work, *arguments)
    except protocol.LengthError as error:
        raise HTTPException(422, str(error)) from error
    except ValueError as error:
        raise HTTPException(400, str(error)) from error


class _Server(uvicorn.Server):
    """Stop within `_LAST` seconds of a signal, whatever clients and the reward do."""

    def __init__(self, application: Starlette) -> None:
        super().__init__(
            uvicorn.Config(
                application,
                log_level="warning",
                access_log=False,
                limit_concurrency=_CONNECTIONS,
                timeout_graceful_shutdown=math.ceil(_GRACE) + 1,
            )
        )
        self.service: Service = application.state.service
        self.signalled, self.ended = threading.Event(), threading.Event()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a second signal ends the process at once."""
        if self.should_exit:
            os._exit(0)
        self.should_exit = True
        self.service.stopping.set()
        self.signalled.set()

    def watch(self) -> None:
        """End the process if it does not end by itself after a signal."""
        self.signalled.wait()
        if not self.ended.wait(_LAST):
            os._exit(0)

    def finish(self) -> None:
        """End the worker; end the process if the worker is in a reward that does not come back."""
        try:
            self.service.worker.submit(int).result(timeout=0.2)
        except TimeoutError:
            os._exit(0)
        self.service.reader.shutdown()
        self.service.worker.shutdown()
        self.ended.set()
        self.signalled.set()


def serve(scorer: Scorer, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve until SIGINT or SIGTERM; port 0 chooses a free port.  Raises UserError if the address cannot be used."""
    application = make_app(scorer)
    listening = listen(host, port)
    server = _Server(application)
    threading.Thread(target=server.watch, name="end of the server", daemon=True).start()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # before and after uvicorn, which has its own
    with suppress(KeyboardInterrupt):
        say(f"scoring {scorer.name} on {url_of(host, listening)}")
        if not is_loopback(host):
            say(f"warning: listening on {host} without authentication", sys.stderr)
        server.run([listening])
    server.finish()
    signal.signal(signal.SIGTERM, before)


def describe(scorer: Scorer) -> dict[str, Any]:
    """Describe a scorer by its name and settings, without the directories of any path."""
    return {**_plain(scorer.settings), "name": re.split(r"[\\/]", scorer.name)[-1]}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float) and abs(value) < float("inf"):
        return value
    text = str(value)
    is_path = _FOLDERS.match(text) or os.path.exists(text)
    return re.split(r"[\\/]", text.rstrip("\\/"))[-1] if is_path else text


def _without_folders(reason: str) -> str:
    return _FOLDERS.sub("", reason)


def _check_type(request: Request) -> None:
    """Refuse a body that says that it is not plain JSON."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" or request.headers.get("content-encoding", "identity") != "identity":
        raise HTTPException(415, "the body is not plain JSON: send it as application/json, without compression")
