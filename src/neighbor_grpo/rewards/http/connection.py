"""Requests to a server that may be slow, wrong or gone: bounded retries, a time limit on the whole request, and counters."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import cache
from typing import Annotated, Any, TypeVar

import httpx
from pydantic import Field

T = TypeVar("T")
_MAX_ANSWER = 16 << 20  # bytes
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


class RequestError(Exception):
    """Report that a request was given up, and why."""


class Connection:
    """Send requests to one server, from any number of threads.

    All state changes on one event loop.  That keeps `counts` right without locks, and allows a time limit on a whole
    request: limits on single reads never end a server that sends a byte now and then.

    After a request that used up its retries, each further request has one attempt until one succeeds, so a dead server costs
    one round of back-off.  `counts` has requests, retries, failed (requests given up), and failed attempts by kind: timeout,
    connection, malformed, "http 500" and so on.
    """

    def __init__(
        self, timeout: float, retries: int, backoff: float, concurrency: int, key: Callable[[], str] = lambda: ""
    ) -> None:
        """Take the settings; `key` returns the API key, which is never stored and is removed from every reason."""
        self.timeout, self.retries, self.backoff, self.key = timeout, retries, backoff, key
        self.counts: Counter[str] = Counter()
        self.slots = asyncio.Semaphore(concurrency)  # enter it around `request`
        self._down = False
        self._client: httpx.AsyncClient | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the event loop and wait for its result.  An interrupt cancels the coroutine."""
        future = asyncio.run_coroutine_threadsafe(work, _loop())
        try:
            return future.result()
        finally:
            future.cancel()

    async def request(self, url: str, body: bytes, read: Callable[[bytes], T]) -> T:
        """Post `body`, with retries, and return read(answer).

        A ValueError of `read` means a malformed answer.  Raises RequestError when the request is given up.
        """
        self.counts["requests"] += 1
        attempts = 1 if self._down else 1 + self.retries
        for n in range(1, attempts + 1):
            try:
                answer = read(await self.send("POST", url, body))
                self._down = False
                return answer
            except AttemptError as error:
                failed = error
            except ValueError as error:
                failed = AttemptError("malformed", self.shorten(str(error)))
            self.counts[failed.kind] += 1
            if not failed.retry or n == attempts:
                break
            await asyncio.sleep(min(max(self.backoff * 2 ** (n - 1), failed.wait), self.timeout))
            self.counts["retries"] += 1
        self.counts["failed"] += 1
        self._down |= failed.retry
        raise RequestError(f"{url}: {failed} (attempt {n} of {attempts})")

    async def send(self, method: str, url: str, body: bytes | None = None) -> bytes:
        """Make one attempt and return the body of the answer.  Raises AttemptError for any status except 200."""
        if self._client is None:
            direct = dict.fromkeys(("all://127.0.0.1", "all://localhost", "all://[::1]"))  # never through a proxy
            self._client = httpx.AsyncClient(timeout=None, limits=httpx.Limits(), mounts=direct)
        answer = bytearray()
        try:
            async with (
                asyncio.timeout(self.timeout),
                self._client.stream(method, url, content=body, headers=self._headers()) as response,
            ):
                async for chunk in response.aiter_bytes():
                    answer += chunk
                    if len(answer) > _MAX_ANSWER:
                        raise AttemptError("malformed", f"the answer has more than {_MAX_ANSWER} bytes")
        except TimeoutError as error:
            raise AttemptError("timeout", f"the answer was not complete after {self.timeout:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise AttemptError("connection", self.shorten(f"{type(error).__name__}: {error}")) from error
        status = response.status_code
        if status != 200:
            after = response.headers.get("retry-after", "")
            raise AttemptError(
                f"http {status}",
                self.shorten(f"HTTP {status}: {answer.decode(errors='replace')}"),
                retry=status >= 500 or status == 429,
                wait=float(after) if after.isdecimal() else 0.0,
            )
        return bytes(answer)

    def _headers(self) -> dict[str, str]:
        headers = {"content-type": "application/json"}
        if key := self.key():
            if not (key.isascii() and key.isprintable()):
                raise AttemptError("key", "the API key has characters that a header cannot carry: correct it", retry=False)
            headers["authorization"] = f"Bearer {key}"
        return headers

    def shorten(self, text: str) -> str:
        """Make one short line of a text from outside, without the key."""
        key = self.key()
        text = " ".join((text.replace(key, "***") if key else text).split())
        return text if len(text) <= 200 else text[:199] + "…"


def _loop() -> asyncio.AbstractEventLoop:
    with _starting:
        return _started()


@cache
def _started() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="rewards over HTTP", daemon=True).start()
    return loop
