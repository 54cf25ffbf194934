"""What stands before every request: who may ask, how much, how often, and what browsers may do with the answer."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from neighbor_grpo.files.listening import is_loopback
from neighbor_grpo.run import serving

MOST_BYTES = 16 << 10  # of the body of a request
_SECONDS = 10.0  # in which it must arrive
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
HEADERS = serving.HEADERS | {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "same-origin",  # no-referrer would hide from us as well where a form comes from
}


@dataclass(frozen=True)
class Address:
    """Hold where the server listens, and how raters reach it."""

    host: str
    url: str | None = None  # of a proxy before it

    @property
    def exposed(self) -> bool:
        """Return whether other machines can reach it."""
        return not is_loopback(self.host) or (self.url is not None and not is_loopback(urlsplit(self.url).hostname or ""))

    @property
    def secure(self) -> bool:
        """Return whether browsers reach it by https only."""
        return self.url is not None and self.url.startswith("https://")

    def serves(self, host: str) -> bool:
        """Return whether a header Host names this server.

        A page of another site can make its own name point here (DNS rebinding), but cannot ask under an address of numbers.
        """
        name = _name(host)
        if name is None:
            return False
        known = {self.host.lower(), (urlsplit(self.url).hostname or "") if self.url else self.host.lower()}
        return name in known or name in _LOOPBACK or (not is_loopback(self.host) and _is_number(name))

    def same_origin(self, origin: str, host: str) -> bool:
        """Return whether a header Origin is that of our own page."""
        place = urlsplit(origin).netloc.lower()
        return bool(place) and place in {host.lower(), urlsplit(self.url).netloc.lower() if self.url else host.lower()}


def _name(host: str) -> str | None:
    """Return the name in a header Host."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _is_number(host: str) -> bool:
    try:
        return bool(ip_address(host))
    except ValueError:
        return False


class Guard:
    """Refuse requests under other names and from other pages, and send the headers that keep browsers from harm."""

    def __init__(self, app: ASGIApp, address: Address) -> None:
        self.app, self.address = app, address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self.address.serves(host):
            reply = PlainTextResponse("unknown host: open the address that the server printed, or start it with --url\n", 421)
            await reply(scope, receive, sending)
        elif scope["method"] == "POST" and not self.address.same_origin(headers.get("origin", ""), host):
            await PlainTextResponse("this request comes from another page: open the study's own page\n", 403)(
                scope, receive, sending
            )
        else:
            await self.app(scope, receive, sending)


async def read_body(request: Request) -> bytes:
    """Read a body.  Raises HTTPException 413 as soon as it is too large, 408 where it does not arrive."""
    body = b""
    try:
        async with asyncio.timeout(_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > MOST_BYTES:
                    raise HTTPException(413)
    except TimeoutError as error:
        raise HTTPException(408) from error
    return body


@dataclass
class Limit:
    """Let somebody do something `burst` times at once, and then `rate` times a second."""

    burst: float
    rate: float
    clock: Callable[[], float] = time.monotonic
    _left: dict[object, tuple[float, float]] = field(default_factory=dict)  # by who: how often still, at which time

    def check(self, who: object) -> None:
        """Count one more time.  Raises HTTPException 429."""
        now = self.clock()
        if len(self._left) > 10_000:  # forget those who may do everything again
            self._left = {other: entry for other, entry in self._left.items() if self._at(entry, now) < self.burst}
        left = self._at(self._left.get(who, (self.burst, now)), now)
        if left < 1:
            raise HTTPException(429, headers={"Retry-After": str(max(1, round((1 - left) / self.rate)))})
        self._left[who] = left - 1, now

    def _at(self, entry: tuple[float, float], now: float) -> float:
        left, then = entry
        return min(self.burst, left + (now - then) * self.rate)
