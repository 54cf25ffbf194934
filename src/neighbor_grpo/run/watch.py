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
from neighbor_grpo.run.files import Figures
from neighbor_grpo.run.follow import Followed, News, names_of, runs_of
from neighbor_grpo.run.pages import macro, render
from neighbor_grpo.run.view import View

_PAGE = Path(__file__).parent / "live.html"
_PAUSE = 1.0  # seconds between two looks at least
_SHARE = 200  # a look that takes t seconds is followed by a pause of 200 t, so that looking costs at most half a per cent
_ALIVE = 15.0  # seconds of silence after which a client is told that the server lives
_WAITING_MESSAGES = 1000  # of a client that does not read; it is sent away, and gets the whole page when it comes back
_PART_OF = {"samples": "pictures", "groups": "groups", "evaluation": "outcome", "state": "time"}  # kind of news -> part
Message = dict[str, Any]


class Watch:
    """Follow runs for all clients together; without clients nothing is read.  Raises UserError where there is no run."""

    def __init__(self, places: Sequence[Path]) -> None:
        runs_of(places)
        self.places = places
        self.followed: list[Followed] = []
        self.pictures: dict[str, Path] = {}  # by the key in an address, which says nothing about the file
        self.clients: set[asyncio.Queue[str | None]] = set()
        self.looking: asyncio.Task[None] | None = None
        self.whole = ""  # the page as a message, until something changes

    # ---------------------------------------------------------------- what has changed

    def look(self) -> list[Message]:
        """Read what has changed in the runs, and return it as messages."""
        try:
            found = self._look()
        except FileNotFoundError:  # a run that is resumed has removed a file between two reads: all is read anew
            self.followed, found = [], []
        if found:
            self.whole = ""
        return found

    def _look(self) -> list[Message]:
        runs = [one.run for one in self.followed]
        with suppress(UserError):  # the runs of a comparison that were there are followed on
            runs = runs_of(self.places)
        new = runs != [one.run for one in self.followed]
        if new:
            self.followed = [Followed(run, name) for run, name in zip(runs, names_of(runs), strict=True)]
        news = {one: one.look() for one in self.followed}
        if new or any("all" in one.kinds for one in news.values()):
            return [self.page()]
        begun = enumerate(self.begun.items())
        found = [message for n, (one, view) in begun for message in self._messages(f"run{n}", one, view, news[one])]
        views, kinds = list(self.begun.values()), {kind for one in news.values() for kind in one.kinds}
        found += [_part("states", macro("run.html", "states")(views, self.waiting))] if kinds else []
        found += [_part("overview", macro("run.html", "overview")(views))] if "evaluation" in kinds else []
        return found

    @property
    def begun(self) -> dict[Followed, View]:
        """Return the runs that have begun."""
        return {one: one.view for one in self.followed if one.view}

    def page(self) -> Message:
        """Return everything."""
        views = list(self.begun.values())
        drawn = curves.overlaid(self._charts(one, view.lines) for one, view in self.begun.items())
        charts = {"curves": curves.thinned(drawn)} | {f"run{n}-against": view.against for n, view in enumerate(views)}
        parts, thinned = [view.parts(self.address) for view in views], any(curves.is_long(view.lines) for view in views)
        html = macro("run.html", "body")(views, parts, thinned, waiting=self.waiting)
        return {"kind": "page", "html": html, "charts": charts}

    @property
    def waiting(self) -> dict[str, str]:
        """Return what is said of runs that have not begun, by name."""
        return {one.name: one.state for one in self.followed if not one.view}

    def _charts(self, one: Followed, lines: Sequence[Figures]) -> list[curves.Panel]:
        return curves.charts(lines, one.name, self.followed.index(one)) if len(self.followed) > 1 else curves.charts(lines)

    def _messages(self, place: str, one: Followed, view: View, news: News) -> list[Message]:
        parts = [part for kind, part in _PART_OF.items() if kind in news.kinds]
        found = [_part(f"{place}-{name}", view.part(name, self.address)) for name in parts]
        if news.lines:
            found.append({"kind": "points", "panels": self._charts(one, news.lines)})
        if "evaluation" in news.kinds:
            found.append({"kind": "charts", "place": f"{place}-against", "panels": view.against})
        return found

    def address(self, file: Path) -> str:
        """Return the address of a picture: a key that is no path.  Raises FileNotFoundError."""
        key = sha256(f"{file} {file.stat().st_mtime_ns}".encode()).hexdigest()[:32]
        self.pictures[key] = file
        return f"pictures/{key}"

    # ---------------------------------------------------------------- clients

    async def messages(self) -> AsyncIterator[str]:
        """Yield the messages of one client, as server-sent events."""
        waiting: asyncio.Queue[str | None] = asyncio.Queue(_WAITING_MESSAGES)
        if not self.followed or not self.clients:
            self.look()
        try:
            self.whole = self.whole or _event(self.page())
        except FileNotFoundError:  # as in `look`: the client comes back
            return
        self.clients.add(waiting)  # before the page is sent: what changes meanwhile waits
        if self.looking is None or self.looking.done():
            self.looking = asyncio.create_task(self._look_on())
        try:
            yield self.whole
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
        try:
            while self.clients:
                await asyncio.sleep(pause)
                began = time.process_time()
                for message in self.look():
                    self._send(_event(message))
                pause = max(_PAUSE, _SHARE * (time.process_time() - began))
        finally:
            self.end()  # where looking failed, clients come back and look anew

    def _send(self, text: str) -> None:
        for waiting in list(self.clients):
            try:
                waiting.put_nowait(text)
            except asyncio.QueueFull:
                self._send_away(waiting)

    def end(self) -> None:
        """End the streams of all clients."""
        for waiting in list(self.clients):
            self._send_away(waiting)

    def _send_away(self, waiting: "asyncio.Queue[str | None]") -> None:
        self.clients.discard(waiting)
        if waiting.full():
            waiting.get_nowait()
        waiting.put_nowait(None)


def _part(place: str, html: str) -> Message:
    return {"kind": "part", "place": place, "html": html}


def _event(message: Message) -> str:
    return f"data: {json.dumps(message, allow_nan=False)}\n\n"


# ---------------------------------------------------------------- application


def application(watch: Watch) -> Starlette:
    """Make the application that shows runs."""
    title = ", ".join(place.resolve().name for place in watch.places)
    routes = [
        Route("/", partial(_frame, title=title)),
        Route("/events", partial(_events, watch=watch)),
        Route("/pictures/{key}", partial(_picture, watch=watch)),
        Route("/favicon.ico", Response(status_code=204)),  # browsers ask for it
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
