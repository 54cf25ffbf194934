"""Requests to a server that may be slow, wrong or gone: bounded retries, a time limit on the whole request, and counters."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import Field

from neighbor_grpo.console import one_line, reason_of
from neighbor_grpo.errors import UserError

T = TypeVar("T")
MAX_ANSWER = 16 << 20  # bytes
_ALIVE = 5.0  # seconds for a sign of life
_QUICK = 0.5  # seconds: an attempt that fails within them costs too little to be left out
_EXAMPLE = "http://127.0.0.1:8000"
_starting = threading.Lock()

Timeout = Annotated[float, Field(gt=0, allow_inf_nan=False, description="seconds for a whole request, to the last byte")]
Retries = Annotated[int, Field(ge=0, description="attempts after the first")]
Backoff = Annotated[
    float, Field(ge=0, allow_inf_nan=False, description="seconds before the first retry; doubled before each next one")
]
Concurrency = Annotated[int, Field(ge=1, description="requests at the same time")]


class AttemptError(Exception):
    """Describe a failed attempt: its kind, whether to retry, and Retry-After in seconds."""

    def __init__(self, kind: str, reason: str, retry: bool = True, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.kind, self.retry, self.wait = kind, retry, wait


@dataclass(frozen=True)
class _Trouble:
    """Say why a server is not trusted at present: it was `silent`, or it failed a request again and again."""

    reason: str
    silent: bool = False
    until: float = 0.0  # on the monotonic clock: until then requests fail unsent


class RequestError(Exception):
    """Report that a request was given up, and why."""


class Connection:
    """Send requests to one server, from any number of threads.

    All state changes on one event loop.  That keeps `counts` right without locks, and allows a time limit on a whole
    request: limits on single reads never end a server that sends a byte now and then.

    A server that fails for long does not cost its time limit again and again.  After a timeout, and after a request that used
    up its retries, one request at a time finds out whether the server answers, and the others wait for its result.  If it
    fails, all requests fail at once, unsent, for as long as it took, unless that was short.  After a timeout a server is first
    tried by a GET with a short limit, so that one that hangs altogether costs little more than one timeout.

    `counts` has requests, retries, failed (requests given up), "not sent" (attempts that failed unsent), and failed attempts
    by kind: timeout, connection, malformed, "http 500" and so on.
    """

    def __init__(
        self, timeout: float, retries: int, backoff: float, concurrency: int, key: Callable[[], str] = lambda: ""
    ) -> None:
        """Take the settings; `key` returns the API key, which is never stored and is removed from every reason."""
        self.timeout, self.retries, self.backoff, self.key = timeout, retries, backoff, key
        self.counts: Counter[str] = Counter()
        self.slots = asyncio.Semaphore(concurrency)  # enter it around `request`
        self._trouble: _Trouble | None = None
        self._finding_out = asyncio.Lock()
        self._client: httpx.AsyncClient | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the event loop and wait for its result.  An interrupt cancels the coroutine."""
        future = asyncio.run_coroutine_threadsafe(work, _loop())
        try:
            return future.result()
        finally:
            future.cancel()

    async def request(self, url: str, body: bytes, read: Callable[[bytes], T], alive: str) -> T:
        """Post `body`, with retries, and return read(answer).

        A ValueError of `read` means a malformed answer.  A GET of `alive` has some answer, of any status, from a server that
        does not hang.  Raises RequestError when the request is given up.
        """
        self.counts["requests"] += 1
        attempts = 1 if self._trouble else 1 + self.retries
        for n in range(1, attempts + 1):
            try:
                return await self._attempt(url, body, read, alive)
            except AttemptError as error:
                failed = error
            self.counts[failed.kind] += 1
            if not failed.retry or n == attempts:
                break
            await asyncio.sleep(min(max(self.backoff * 2 ** (n - 1), failed.wait), self.timeout))
            self.counts["retries"] += 1
        self.counts["failed"] += 1
        if failed.retry:
            self._trouble = self._trouble or _Trouble(str(failed))
        raise RequestError(f"{url}: {failed} (attempt {n} of {attempts})")

    async def _attempt(self, url: str, body: bytes, read: Callable[[bytes], T], alive: str) -> T:
        """Make one attempt, unless the server is in trouble and another request has just found out that it still is."""
        if self._trouble:
            async with self._finding_out:
                if trouble := self._trouble:  # not ended while this request waited
                    return await self._find_out(trouble, url, body, read, alive)
        return await self._exchange(url, body, read)

    async def _find_out(self, trouble: "_Trouble", url: str, body: bytes, read: Callable[[bytes], T], alive: str) -> T:
        began = time.monotonic()
        if began < trouble.until:
            raise AttemptError("not sent", f"not sent, because the server failed before: {trouble.reason}", retry=False)
        try:
            if trouble.silent:
                await self._check_alive(alive)
            return await self._exchange(url, body, read)
        except AttemptError as error:
            if not error.retry or (trouble.silent and error.kind != "timeout"):
                self._trouble = None  # it answers, if only to refuse or to fail as others do
                raise
            ended = time.monotonic()
            pause = ended - began if trouble.silent or ended - began > _QUICK else 0.0
            self._trouble = replace(trouble, reason=str(error), until=ended + pause)
            raise AttemptError(error.kind, str(error), retry=False) from error

    async def _check_alive(self, url: str) -> None:
        try:
            await self.send("GET", url, limit=min(self.timeout, _ALIVE))
        except AttemptError as error:
            if error.kind in ("timeout", "connection"):
                raise

    async def _exchange(self, url: str, body: bytes, read: Callable[[bytes], T]) -> T:
        try:
            answer = read(await self.send("POST", url, body))
        except AttemptError as error:
            if error.kind == "timeout":
                self._trouble = self._trouble or _Trouble(str(error), silent=True)
            raise
        except ValueError as error:
            raise AttemptError("malformed", self.shorten(str(error))) from error
        self._trouble = None
        return answer

    async def send(
        self, method: str, url: str, body: bytes | None = None, limit: float | None = None, most: int = MAX_ANSWER
    ) -> bytes:
        """Make one attempt and return the body of the answer.  Raises AttemptError for any status except 200.

        limit: seconds, by default the timeout.  most: bytes of the answer.
        """
        limit = self.timeout if limit is None else limit
        if self._client is None:
            direct = dict.fromkeys(("all://127.0.0.1", "all://localhost", "all://[::1]"))  # never through a proxy
            self._client = httpx.AsyncClient(timeout=None, limits=httpx.Limits(), mounts=direct)
        answer = bytearray()
        try:
            async with (
                asyncio.timeout(limit),
                self._client.stream(method, url, content=body, headers=self._headers()) as response,
            ):
                async for chunk in response.aiter_raw():  # not unpacked: a small answer must not become a large one
                    answer += chunk
                    if len(answer) > most:
                        raise AttemptError("malformed", f"the answer has more than {most} bytes")
        except TimeoutError as error:
            raise AttemptError("timeout", f"the answer was not complete after {limit:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:  # ValueError: an url that httpx cannot parse
            raise AttemptError("connection", self.shorten(f"the connection failed: {reason_of(error)}")) from error
        status = response.status_code
        if status != 200:
            after = response.headers.get("retry-after", "")
            raise AttemptError(
                f"http {status}",
                self.shorten(f"HTTP {status}: {answer[:4096].decode(errors='replace')}"),
                retry=status >= 500 or status == 429,
                wait=float(after) if after.isdecimal() and len(after) < 9 else 0.0,
            )
        return bytes(answer)

    def _headers(self) -> dict[str, str]:
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if key := self.key():
            if not (key.isascii() and key.isprintable()):
                raise AttemptError("key", "the API key has characters that a header cannot carry: correct it", retry=False)
            headers["authorization"] = f"Bearer {key}"
        return headers

    def shorten(self, text: str) -> str:
        """Make one short line of a text from outside, without the key."""
        key = self.key()
        return one_line(text.replace(key, "***") if key else text, 200)


def check_url(name: str, url: str) -> None:
    """Raise UserError unless `url` is the address of a server: http or https, a host, and perhaps a port and a path."""
    try:
        parts = urlsplit(url)
        wrong = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
    except ValueError:  # a port that is not a number from 0 to 65535, a bracket without its other half
        wrong = True
    if wrong or parts.query or parts.fragment or not url.isprintable() or " " in url:
        raise UserError(
            f"{name}: url {one_line(url, 200)!r} is not the address of a server: correct the url, such as {_EXAMPLE}"
        )


def _loop() -> asyncio.AbstractEventLoop:
    with _starting:
        return _started()


@cache
def _started() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="rewards over HTTP", daemon=True).start()
    return loop
