"""A reward that a server computes (see server.py)."""

import asyncio
from collections import Counter
from functools import cached_property, partial
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from neighbor_grpo.errors import STRICT, UserError
from neighbor_grpo.rewards.http import protocol
from neighbor_grpo.rewards.http.connection import (
    AttemptError,
    Backoff,
    Concurrency,
    Connection,
    RequestError,
    Retries,
    Timeout,
    check_url,
)

_MAX_HEALTH = 1 << 16  # bytes


@dataclass(frozen=True, config=STRICT)
class Remote:
    """Score pictures by the server at `url`.  A picture without a score has an exception in its place, for any reason."""

    url: Annotated[str, Field(description="of the server, such as http://127.0.0.1:8000")] = ""
    timeout: Timeout = 60.0
    retries: Retries = 4
    backoff: Backoff = 0.5
    batch: Annotated[int, Field(ge=1, description="pictures per request")] = 16
    concurrency: Concurrency = 4

    def __post_init__(self) -> None:
        """Make the connection now, in one thread."""
        _ = self.connection

    @cached_property
    def connection(self) -> Connection:
        """Return the connection to the server."""
        return Connection(self.timeout, self.retries, self.backoff, self.concurrency)

    @property
    def counts(self) -> Counter[str]:
        """Return the counters of `Connection`, and "null": pictures that the server did not score."""
        return self.connection.counts

    @property
    def id(self) -> dict[str, Any]:
        """Return the url and what the server says about its scorer."""
        return {"url": self.url, "scorer": self.scorer}

    def load(self) -> None:
        """Request name and settings of the scorer.  Raises UserError if the url is wrong."""
        _ = self.scorer

    @cached_property
    def scorer(self) -> dict[str, Any]:
        """Return the answer of GET /health: name and settings of the scorer.  Raises UserError if the url is wrong."""
        if not self.url:
            raise UserError("a remote scorer needs a url: set it, such as http://127.0.0.1:8000")
        check_url("a remote scorer", self.url)
        try:
            answer = self.connection.send("GET", self._at("health"), most=_MAX_HEALTH)
            health = protocol.read_object(self.connection.run(answer))
        except AttemptError as error:
            raise UserError(f"no scorer at {self.url} ({error}): start one there or correct the url") from error
        except ValueError:
            health = {}
        scorer = health.get("scorer")
        if health.get("status") != "ok" or not isinstance(scorer, dict) or not isinstance(scorer.get("name"), str):
            raise UserError(f"the server at {self.url} is not a scorer (its /health does not name one): correct the url")
        return scorer

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float | Exception]:
        """Score pictures [N, 3, H, W]."""
        return self.connection.run(self._score(images, prompts, metadata))

    async def _score(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float | Exception]:
        batches = [slice(n, n + self.batch) for n in range(0, len(prompts), self.batch)]
        scores = await asyncio.gather(*(self._score_batch(images[b], prompts[b], metadata[b]) for b in batches))
        return [value for batch in scores for value in batch]

    async def _score_batch(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float | Exception]:
        async with self.connection.slots:
            items = await asyncio.to_thread(_items, images, prompts, metadata)
            sent = [item for item in items if not isinstance(item, Exception)]
            scores: list[float | Exception] = []
            if sent:
                read = partial(protocol.read_answer, n=len(sent))
                try:
                    scores = await self.connection.request(self._at("score"), protocol.request(sent), read, self._at("health"))
                except RequestError as error:
                    scores = [error] * len(sent)
        self.counts["null"] += sum(isinstance(value, protocol.UnscoredError) for value in scores)
        received = iter(scores)
        return [item if isinstance(item, Exception) else next(received) for item in items]

    def _at(self, path: str) -> str:
        return f"{self.url.rstrip('/')}/{path}"


def _items(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> list[protocol.Item | ValueError]:
    """Encode each picture, or say why it cannot be sent."""
    items: list[protocol.Item | ValueError] = []
    for row in zip(images, prompts, metadata, strict=True):
        try:
            items.append(protocol.item(*row))
        except ValueError as error:
            items.append(error)
    return items
