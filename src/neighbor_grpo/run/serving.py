"""Pages over HTTP that only those see who may: on this machine by default, elsewhere with a token; under a strict policy."""

import secrets
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from http.cookies import SimpleCookie
from urllib.parse import parse_qs, urlsplit

import uvicorn
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from neighbor_grpo.files.listening import is_loopback

_CONNECTIONS = 4096  # at once; others get 503
_COOKIE = "neighbor-grpo-token"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",  # of an answer that does not bring its own
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """Answer only who may ask, and send every answer with headers that forbid a browser what the pages do not need.

    token None: only requests that name this machine are answered, so that no page of another site reaches it under a name of
    its own.  With a token: only requests with it, which the address that was printed turns into a cookie.
    """

    def __init__(self, app: ASGIApp, token: str | None = None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if scope["type"] == "http":
            await (self._refusal(scope) or self.app)(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if self.token is None:
            named = is_loopback(urlsplit(f"//{headers.get('host', '')}").hostname or "")
            return None if named else PlainTextResponse("Ask by the address that was printed.\n", 421)
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if _same(given, self.token):
            answer = RedirectResponse("/", 303)
            answer.set_cookie(_COOKIE, self.token, httponly=True, samesite="strict")
            return answer
        cookie = SimpleCookie(headers.get("cookie", "")).get(_COOKIE)
        if cookie and _same(cookie.value, self.token):
            return None
        return PlainTextResponse("Open the address that was printed, with its token.\n", 403)


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode(), token.encode())


def new_token(host: str) -> str | None:
    """Return a token for pages that other machines can reach; None where they cannot."""
    return None if is_loopback(host) else secrets.token_urlsafe(24)


class Server(uvicorn.Server):
    """Serve an application; `end` is called when the server stops, and ends answers that would go on."""

    def __init__(self, app: ASGIApp, end: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                lifespan="off",
                limit_concurrency=_CONNECTIONS,
                timeout_graceful_shutdown=2,
            )
        )
        self.end = end

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop."""
        self.end()
        await super().shutdown(sockets)


def run(app: ASGIApp, listening: socket.socket, end: Callable[[], None] = lambda: None) -> None:
    """Serve until SIGINT or SIGTERM; `end` is called when the server stops."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # before and after uvicorn, which has its own
    with suppress(KeyboardInterrupt):
        Server(app, end).run([listening])
    signal.signal(signal.SIGTERM, before)
