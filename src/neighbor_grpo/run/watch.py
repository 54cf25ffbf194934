"""The page of runs while they go on: a server that reads the runs' files, never writes, and sends what has changed.

A browser gets the frame of the page at /, then messages at /events: the whole page, a part of it, points of curves.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from markupsafe import Markup
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from neighbor_grpo.errors import UserError
from neighbor_grpo.run import curves
from neighbor_grpo.run.follow import WAITING, Followed, News, names_of, runs_of
from neighbor_grpo.run.pages import macro, render
from neighbor_grpo.run.view import PARTS

_PAGE = Path(__file__).parent / "live.html"
_PAUSE = 1.0  # seconds between two looks at least
_SHARE = 200  # a look that takes t seconds is followed by a pause of 200 t, so that looking costs at most half a per cent
_ALIVE = 15.0  # seconds of silence after which a client is told that the server lives
_WAITING_MESSAGES = 1000  # of a client that does not read; it is sent away, and gets the whole page when it comes back
_PARTS_OF = {"samples": ("pictures",), "groups": ("groups",), "evaluation": ("outcome",), "state": ("time",)}  # news -> parts
Message = dict[str, Any]


class Watch:
    """Follow runs for all clients together; without clients nothing is read."""

    def __init__(self, places: Sequence[Path]) -> None:
        self.places = places
        self.followed: list[Followed] = []
        self.pictures: dict[str, Path] = {}  # by the key in an address, which says nothing about the file
        self.clients: set[asyncio.Queue[str | None]] = set()
        self.looking: asyncio.Task[None] | None = None

    # ---------------------------------------------------------------- what has changed

    def look(self) -> list[Message]:
        """Read what has changed in the runs, and return it as messages."""
        runs = [one.run for one in self.followed]
        with suppress(UserError):  # the runs of a comparison that were there are followed on
            runs = runs_of(self.places)
        new = runs != [one.run for one in self.followed]
        if new:
            self.followed = [Followed(run, name) for run, name in zip(runs, names_of(runs), strict=True)]
        news = [one.look() for one in self.followed]
        if new or any("all" in one.kinds for one in news):
            return [self.page()]
        return [message for n, one in enumerate(news) for message in self._messages(n, one)] + (
            [self._overview()] if any(one.kinds for one in news) else []
        )

    def page(self) -> Message:
        """Return everything."""
        views = [one.view for one in self.followed if one.view]
        parts = [view.parts(self.address) for view in views]
        charts = {f"run{n}-against": view.against for n, view in enumerate(views)}
        drawn = curves.overlaid(self._charts(n, view.lines) for n, view in enumerate(views))
        thinned = any(curves.is_long(view.lines) for view in views)
        html = macro("run.html", "body")(views, parts, thinned, 0) if views else f"<p>{WAITING}</p>"
        return {"kind": "page", "html": html, "charts": charts | ({"curves": curves.thinned(drawn)} if views else {})}

    def _charts(self, n: int, lines: Sequence[Any]) -> list[curves.Panel]:
        several = len(self.followed) > 1
        return curves.charts(lines, self.followed[n].name, n) if several else curves.charts(lines)

    def _overview(self) -> Message:
        return _part("overview", macro("run.html", "overview")([one.view for one in self.followed if one.view]))

    def _messages(self, n: int, news: News) -> list[Message]:
        view = self.followed[n].view
        if view is None:
            return []
        names = [name for kind in news.kinds for name in _PARTS_OF.get(kind, ())]
        found = [_part(f"run{n}-{name}", view.part(name, self.address)) for name in PARTS if name in names]
        if news.lines:
            found.append({"kind": "points", "panels": self._charts(n, news.lines)})
        if "evaluation" in news.kinds:
            found.append({"kind": "charts", "place": f"run{n}-against", "panels": view.against})
        return found

    def address(self, file: Path) -> str:
        """Return the address of a picture: a key that is no path."""
        key = sha256(f"{file} {file.stat().st_mtime_ns}".encode()).hexdigest()[:32]
        self.pictures[key] = file
        return f"pictures/{key}"

    # ---------------------------------------------------------------- clients

    async def messages(self) -> AsyncIterator[str]:
        """Yield the messages of one client, as server-sent events."""
        waiting: asyncio.Queue[str | None] = asyncio.Queue(_WAITING_MESSAGES)
        if not self.followed or not self.clients:
            self.look()
        yield _event(self.page())
        self.clients.add(waiting)
        if self.looking is None or self.looking.done():
            self.looking = asyncio.create_task(self._look_on())
        try:
            while True:
                try:
                    text = await asyncio.wait_for(waiting.get(), _ALIVE)
                except TimeoutError:
                    text = ": still here\n\n"
                if text is None:
                    return
                yield text
        finally:
            self.clients.discard(waiting)

    async def _look_on(self) -> None:
        """Look again and again, as long as there are clients."""
        pause = _PAUSE
        while self.clients:
            await asyncio.sleep(pause)
            began = time.process_time()
            for message in self.look():
                self._send(_event(message))
            pause = max(_PAUSE, _SHARE * (time.process_time() - began))

    def _send(self, text: str) -> None:
        for waiting in list(self.clients):
            try:
                waiting.put_nowait(text)
            except asyncio.QueueFull:
                self.clients.discard(waiting)
                waiting.get_nowait()
                waiting.put_nowait(None)


def _part(place: str, html: str) -> Message:
    return {"kind": "part", "place": place, "html": html}


def _event(message: Message) -> str:
    return f"data: {json.dumps(message, allow_nan=False)}\n\n"


# ---------------------------------------------------------------- application


def application(places: Sequence[Path]) -> Starlette:
    """Make the application that shows these runs.  Raises UserError where there is no run."""
    watch = Watch(places)
    title = ", ".join(names_of(runs_of(places)))
    watch.look()
    routes = [
        Route("/", partial(_frame, title=title)),
        Route("/events", partial(_events, watch=watch)),
        Route("/pictures/{key}", partial(_picture, watch=watch)),
    ]
    return Starlette(routes=routes)


async def _frame(request: Request, title: str) -> Response:
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    html = render(_PAGE, {"title": title, "nonce": Markup(f' nonce="{nonce}"'), "charts": {}})
    return HTMLResponse(html, headers={"Content-Security-Policy": policy, "Cache-Control": "no-store"})


async def _events(request: Request, watch: Watch) -> Response:
    return StreamingResponse(watch.messages(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _picture(request: Request, watch: Watch) -> Response:
    file = watch.pictures.get(request.path_params["key"])
    try:
        data = await run_in_threadpool(file.read_bytes) if file else None
    except OSError:  # the run has removed it
        data = None
    if data is None:
        return PlainTextResponse("There is no such picture.\n", 404)
    return Response(data, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})
