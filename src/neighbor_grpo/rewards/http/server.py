"""A server that scores over HTTP, on another machine or in another environment than the training."""

import asyncio
import os
import re
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from neighbor_grpo.errors import UserError
from neighbor_grpo.rewards.http import protocol
from neighbor_grpo.rewards.score import score
from neighbor_grpo.rewards.scorer import Scorer

_FOLDERS = re.compile(  # the directories of an absolute, home or dotted path, in quotes (with spaces) or without
    r"""(?<=['"])(?:[A-Za-z]:|~|\.{1,2})?[\\/][^'"]*[\\/]|(?<![\w:/.\\])(?:[A-Za-z]:|~|\.{1,2})?[\\/](?:[^\s'"]*[\\/])?"""
)
_GONE = 499  # status of an answer that no client reads


def make_app(scorer: Scorer, *, max_bytes: int = 256 << 20, max_pixels: int = protocol.MAX_PIXELS) -> Starlette:
    """Make the application with GET /health and POST /score.

    Requests wait for one thread that scores, because models are not re-entrant.  max_bytes limits the body of a request,
    max_pixels all its pictures together.  Raises UserError if requests cannot carry what the reward needs.
    """
    if scorer.groupwise:
        raise UserError(f"reward {scorer.name} compares the pictures of a prompt, and requests have no groups: do not serve it")
    if scorer.of_videos:
        raise UserError(f"reward {scorer.name} scores videos, and requests carry pictures: do not serve it")
    description = describe(scorer)
    worker = ThreadPoolExecutor(1, "scorer")
    turn = asyncio.Lock()

    def work(body: bytes) -> bytes:
        try:
            images, prompts, metadata = protocol.read_request(body, max_pixels)
        except protocol.LengthError as error:
            raise HTTPException(422, str(error)) from error
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        scores = score(scorer, images, prompts, metadata)
        reasons = {failure.index: _without_folders(failure.reason)[:500] for failure in scores.failures}
        return protocol.answer(scores, description, reasons)

    async def scores(request: Request) -> Response:
        body = await _body(request, max_bytes)
        async with turn:
            if await request.is_disconnected():  # the client gave up while this request waited
                return Response(status_code=_GONE)
            answer = await asyncio.get_running_loop().run_in_executor(worker, work, body)
        return Response(answer, media_type="application/json")

    async def health(request: Request) -> Response:
        return JSONResponse({"scorer": description, "status": "ok"})

    async def refuse(request: Request, error: Any) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    async def gone(request: Request, error: Any) -> Response:
        return Response(status_code=_GONE)

    routes = [Route("/health", health, methods=["GET"]), Route("/score", scores, methods=["POST"])]
    starlette = Starlette(routes=routes, exception_handlers={HTTPException: refuse, ClientDisconnect: gone})
    starlette.router.redirect_slashes = False
    return starlette


def serve(scorer: Scorer, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve until SIGINT or SIGTERM; port 0 chooses a free port.  Raises UserError if the address cannot be used."""
    application = make_app(scorer)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port} ({error.strerror}): choose another host or port") from error
    print(f"scoring {scorer.name} on http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}", flush=True)
    if not _loopback(host):
        print(f"warning: listening on {host} without authentication", file=sys.stderr, flush=True)
    with suppress(KeyboardInterrupt):  # uvicorn raises it again after it has answered all requests
        uvicorn.Server(uvicorn.Config(application, log_level="warning", access_log=False)).run([listening])


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


def _loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _body(request: Request, max_bytes: int) -> bytes:
    """Read the body, and refuse it as soon as it is too large."""
    refusal = HTTPException(413, f"the body has more than {max_bytes} bytes: send fewer pictures at once")
    if int(request.headers.get("content-length", 0)) > max_bytes:
        raise refusal
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise refusal
    return bytes(body)
