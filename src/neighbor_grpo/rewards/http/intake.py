"""Bodies of requests on their way into a server: bounded in bytes, each and all together, and in time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.exceptions import HTTPException
from starlette.requests import Request

_PATIENCE = 60.0  # seconds that a request waits for room
_IDLE = 10.0  # seconds between two pieces of a body
_RATE = 64 << 10  # bytes per second that a body must bring on average, after its first _IDLE seconds


class Intake:
    """Let bodies in as long as all of them together have at most `total` bytes; the others wait outside.

    A request's room is what its Content-Length says, or `most` without one, and it is free again when the request has been
    answered.  A body that waits is not read, so that its client waits too.
    """

    def __init__(self, most: int, total: int) -> None:
        self.most, self.total = most, max(total, most)
        self._used = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def room(self, request: Request) -> AsyncIterator[Callable[[], Awaitable[bytearray]]]:
        """Wait until there is room for the body, and yield a function that reads it.

        Raises HTTPException: 413 if the body is too large, 503 if there was no room for too long.  The function raises it with
        408 if the client is too slow.
        """
        announced = request.headers.get("content-length", "")
        length = int(announced) if announced.isdecimal() and len(announced) < 20 else self.most
        if length > self.most:
            raise self._too_large()
        await self._take(length)
        try:
            yield lambda: self._read(request)
        finally:
            self._used -= length
            async with self._changed:
                self._changed.notify_all()

    async def _take(self, length: int) -> None:
        try:
            async with asyncio.timeout(_PATIENCE), self._changed:
                await self._changed.wait_for(lambda: self._used + length <= self.total)
                self._used += length
        except TimeoutError as error:
            raise HTTPException(503, "too many large requests at once: send it again later", {"Retry-After": "5"}) from error

    async def _read(self, request: Request) -> bytearray:
        """Read the body, and refuse it as soon as it is too large or too slow."""
        body, clock = bytearray(), asyncio.get_running_loop().time
        began = clock()
        try:
            async with asyncio.timeout(_IDLE) as limit:
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > self.most:
                        raise self._too_large()
                    limit.reschedule(min(clock() + _IDLE, began + _IDLE + len(body) / _RATE))
        except TimeoutError as error:
            raise HTTPException(408, "the body came too slowly: send it in one piece", {"Connection": "close"}) from error
        return body

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the body has more than {self.most} bytes: send fewer pictures at once")
