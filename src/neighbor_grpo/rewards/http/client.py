"""A reward that another process computes (see server.py)."""

import asyncio
from collections import Counter
from functools import cached_property, partial
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from neighbor_grpo.errors import STRICT, UserError
from neighbor_grpo.rewards.http import protocol as wire
from neighbor_grpo.rewards.http.connection import Backoff, Concurrency, Fault, Link, Retries, Timeout, Unanswered


@dataclass(frozen=True, config=STRICT)
class Remote:
    """The scorer at `url`.  A picture that it does not score, for whatever reason, has an exception in its place."""

    url: Annotated[str, Field(description="of the scorer, such as http://127.0.0.1:8000")] = ""
    timeout: Timeout = 60.0
    retries: Retries = 4
    backoff: Backoff = 0.5
    batch: Annotated[int, Field(ge=1, description="pictures per request")] = 16
    concurrency: Concurrency = 4

    def __post_init__(self) -> None:
        _ = self.link  # made here, by one thread

    @cached_property
    def link(self) -> Link:
        return Link(self.timeout, self.retries, self.backoff, self.concurrency)

    @property
    def counts(self) -> Counter[str]:
        """See Link; and "null", pictures to which the server gave no score."""
        return self.link.counts

    @property
    def id(self) -> dict[str, Any]:
        """Where the scores come from, and what the scorer there says of itself."""
        return {"url": self.url, "scorer": self.scorer}

    def load(self) -> None:
        _ = self.scorer

    @cached_property
    def scorer(self) -> dict[str, Any]:
        """Name and settings, by /health.  UserError where there is no scorer."""
        if not self.url:
            raise UserError("a remote scorer has no url: set it, such as http://127.0.0.1:8000")
        try:
            health = wire.read_object(self.link.run(self.link.once("GET", self._at("health"))))
        except Fault as fault:
            raise UserError(f"no scorer at {self.url} ({fault}): start one there or correct the url") from fault
        except ValueError:
            health = {}
        scorer = health.get("scorer")
        if health.get("status") != "ok" or not isinstance(scorer, dict) or not isinstance(scorer.get("name"), str):
            raise UserError(f"what answers at {self.url} is no scorer (its /health names none): correct the url")
        return scorer

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> list[float | Exception]:
        return self.link.run(self._all(images, prompts, metadata))

    async def _all(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> list[float | Exception]:
        rows = [slice(n, n + self.batch) for n in range(0, len(prompts), self.batch)]
        parts = await asyncio.gather(*(self._part(images[r], prompts[r], metadata[r]) for r in rows))
        return [value for part in parts for value in part]

    async def _part(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> list[float | Exception]:
        async with self.link.turn:
            items = await asyncio.to_thread(_items, images, prompts, metadata)
            good = [item for item in items if not isinstance(item, Exception)]
            scores: list[float | Exception] = []
            if good:
                try:
                    scores = await self.link.ask(self._at("score"), wire.request(good), partial(wire.read_answer, n=len(good)))
                except Unanswered as error:
                    scores = [error] * len(good)
        self.counts["null"] += sum(isinstance(value, wire.Unscored) for value in scores)
        given = iter(scores)
        return [item if isinstance(item, Exception) else next(given) for item in items]

    def _at(self, path: str) -> str:
        return f"{self.url.rstrip('/')}/{path}"


def _items(images: Tensor, prompts: list[str], metadata: list[dict]) -> list[tuple[str, str, dict] | Exception]:
    items: list[tuple[str, str, dict] | Exception] = []
    for row in zip(images, prompts, metadata, strict=True):
        try:
            items.append(wire.item(*row))
        except ValueError as error:  # this picture's fault, and no other's
            items.append(error)
    return items
