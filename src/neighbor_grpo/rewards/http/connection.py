"""How a server is asked that may be slow, wrong or gone: bounded tries, a limit on the whole request, and counts of it all."""

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

Timeout = Annotated[
    float, Field(gt=0, allow_inf_nan=False, description="seconds for a request as a whole, until its last byte is here")
]
Retries = Annotated[int, Field(ge=0, description="tries after the first")]
Backoff = Annotated[
    float, Field(ge=0, allow_inf_nan=False, description="seconds before the first retry, twice as many before each next")
]
Concurrency = Annotated[int, Field(ge=1, description="requests at once")]


class Fault(Exception):
    """A try that came to nothing: of what kind, whether another may do better, and how long the server asks to be left."""

    def __init__(self, kind: str, reason: str, again: bool = True, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.kind, self.again, self.wait = kind, again, wait


class Unanswered(Exception):
    """A request that was given up, and why."""


class Link:
    """Asks one server, for any number of threads.

    Its state is touched on one event loop only: that keeps `counts` right without locks, and bounds a request as a whole,
    where timeouts of single reads and writes never end one that drips.

    After a request that exhausted its retries, each next has one try until one succeeds: a server that is gone costs one
    round of back-off.  counts: requests, retries, failed (requests), and the tries that failed by their kind: timeout,
    connection, malformed, "http 500" and so on.
    """

    def __init__(
        self, timeout: float, retries: int, backoff: float, concurrency: int, key: Callable[[], str] = lambda: ""
    ) -> None:
        """key gives the API key to send; it is not kept, and blotted out of every reason."""
        self.timeout, self.retries, self.backoff, self.key = timeout, retries, backoff, key
        self.counts: Counter[str] = Counter()
        self.turn = asyncio.Semaphore(concurrency)  # to be held by whoever asks
        self._down = False
        self._client: httpx.AsyncClient | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Does the work on the loop and waits for it; an interrupt ends the work too."""
        future = asyncio.run_coroutine_threadsafe(work, _loop())
        try:
            return future.result()
        finally:
            future.cancel()

    async def ask(self, url: str, body: bytes, read: Callable[[bytes], T]) -> T:
        """What `read` makes of the answer to a POST; its ValueError stands for a malformed one.  Unanswered when given up."""
        self.counts["requests"] += 1
        tries = 1 if self._down else 1 + self.retries
        for n in range(1, tries + 1):
            try:
                answer = read(await self.once("POST", url, body))
                self._down = False
                return answer
            except Fault as error:
                fault = error
            except ValueError as error:
                fault = Fault("malformed", self.short(str(error)))
            self.counts[fault.kind] += 1
            if not fault.again or n == tries:
                break
            await asyncio.sleep(min(max(self.backoff * 2 ** (n - 1), fault.wait), self.timeout))
            self.counts["retries"] += 1
        self.counts["failed"] += 1
        self._down |= fault.again
        raise Unanswered(f"{url}: {fault} (try {n} of {tries})")

    async def once(self, method: str, url: str, body: bytes | None = None) -> bytes:
        """The body of an answer with status 200; Fault for anything else."""
        if self._client is None:
            direct = dict.fromkeys(("all://127.0.0.1", "all://localhost", "all://[::1]"))  # never by way of a proxy
            self._client = httpx.AsyncClient(timeout=None, limits=httpx.Limits(), mounts=direct)
        headers = {"content-type": "application/json"}
        if key := self.key():
            if not (key.isascii() and key.isprintable()):
                raise Fault("key", "the API key holds characters that no header may", again=False)
            headers["authorization"] = f"Bearer {key}"
        answer = bytearray()
        try:
            async with (
                asyncio.timeout(self.timeout),
                self._client.stream(method, url, content=body, headers=headers) as response,
            ):
                async for chunk in response.aiter_bytes():
                    answer += chunk
                    if len(answer) > _MAX_ANSWER:
                        raise Fault("malformed", f"an answer of more than {_MAX_ANSWER} bytes")
        except TimeoutError as error:
            raise Fault("timeout", f"no whole answer in {self.timeout:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise Fault("connection", self.short(f"{type(error).__name__}: {error}")) from error
        status = response.status_code
        if status != 200:
            after = response.headers.get("retry-after", "")
            raise Fault(
                f"http {status}",
                self.short(f"HTTP {status}: {answer.decode(errors='replace')}"),
                again=status >= 500 or status == 429,
                wait=float(after) if after.isdecimal() else 0.0,
            )
        return bytes(answer)

    def short(self, text: str) -> str:
        """A text from outside as part of a reason: one line, not long, without the key."""
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
