"""Serves a reward over HTTP, so that a model may score on another machine, or in another environment, than the training."""

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
from neighbor_grpo.rewards.http import protocol as wire
from neighbor_grpo.rewards.score import Reward, score, settings_of

_FOLDERS = re.compile(  # the folders of an absolute, home or dotted path, in quotes (with spaces) or without
    r"""(?<=['"])(?:[A-Za-z]:|~|\.{1,2})?[\\/][^'"]*[\\/]|(?<![\w:/.\\])(?:[A-Za-z]:|~|\.{1,2})?[\\/](?:[^\s'"]*[\\/])?"""
)
_GONE = 499  # nobody reads this answer


def app(reward: Reward, name: str, *, max_bytes: int = 256 << 20, max_pixels: int = wire.MAX_PIXELS) -> Starlette:
    """GET /health and POST /score.  Requests wait in line for the one thread that scores: models are not re-entrant.

    max_bytes bounds the body of a request, max_pixels its pictures together.
    """
    if getattr(reward, "groupwise", False):
        raise UserError(f"reward {name!r} compares the pictures of a prompt; requests know no groups: score in-process")
    scorer = describe(reward, name)
    worker = ThreadPoolExecutor(1, "scorer")
    turn = asyncio.Lock()

    def work(body: bytes) -> bytes:
        try:
            images, prompts, metadata = wire.read_request(body, max_pixels)
        except wire.Mismatch as error:
            raise HTTPException(422, str(error)) from error
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        scores = score(reward, images, prompts, metadata)
        return wire.answer(scores, scorer, {failure.index: _tidy(failure.reason)[:500] for failure in scores.failures})

    async def scores(request: Request) -> Response:
        body = await _body(request, max_bytes)
        async with turn:
            if await request.is_disconnected():  # the client gave up while this waited, and has asked again since
                return Response(status_code=_GONE)
            answer = await asyncio.get_running_loop().run_in_executor(worker, work, body)
        return Response(answer, media_type="application/json")

    async def health(request: Request) -> Response:
        return JSONResponse({"scorer": scorer, "status": "ok"})

    async def refuse(request: Request, error: Any) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    async def gone(request: Request, error: Any) -> Response:
        return Response(status_code=_GONE)

    routes = [Route("/health", health, methods=["GET"]), Route("/score", scores, methods=["POST"])]
    starlette = Starlette(routes=routes, exception_handlers={HTTPException: refuse, ClientDisconnect: gone})
    starlette.router.redirect_slashes = False
    return starlette


def serve(reward: Reward, name: str, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serves until SIGINT or SIGTERM; port 0 picks a free one.  UserError where the address cannot be had."""
    application = app(reward, name)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port} ({error.strerror}): choose another host or port") from error
    print(f"scoring {name} on http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}", flush=True)
    if not _loopback(host):
        print(f"warning: other machines can reach {host}, and nobody is asked who they are", file=sys.stderr, flush=True)
    with suppress(KeyboardInterrupt):  # uvicorn raises it again once all requests are answered
        uvicorn.Server(uvicorn.Config(application, log_level="warning", access_log=False)).run([listening])


def describe(reward: Reward, name: str) -> dict[str, Any]:
    """Who scores: the name and the settings, without the folders of any path."""
    return {**_plain(settings_of(reward)), "name": re.split(r"[\\/]", name)[-1]}


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


def _tidy(reason: str) -> str:
    return _FOLDERS.sub("", reason)


def _loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _body(request: Request, max_bytes: int) -> bytes:
    """The body, refused as soon as it is known to be too large."""
    refusal = HTTPException(413, f"the body has more than {max_bytes} bytes: send fewer pictures at once")
    if int(request.headers.get("content-length", 0)) > max_bytes:
        raise refusal
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise refusal
    return bytes(body)
