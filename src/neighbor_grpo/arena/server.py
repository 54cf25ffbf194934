"""The server of a study: pages and pictures for raters, who never learn which picture is of which model."""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from neighbor_grpo.arena.forms import Answers, rater_name, read_answers, read_form, read_token
from neighbor_grpo.arena.guard import Address, Guard, Limit
from neighbor_grpo.arena.media import degraded_png, plain_png
from neighbor_grpo.arena.rating import NameTakenError, Rating, Turn
from neighbor_grpo.arena.signing import SESSION, ExpiredError, Seal
from neighbor_grpo.arena.study import Study
from neighbor_grpo.arena.texts import LANGUAGES, TEXTS, language_of
from neighbor_grpo.arena.worker import Worker
from neighbor_grpo.errors import UserError
from neighbor_grpo.run import pages

_WEB = Path(__file__).parent / "web"
_STATIC = {  # what a request may name, and its file
    "style.css": (Path(pages.__file__).parent / "web" / "style.css", "text/css"),
    "arena.css": (_WEB / "arena.css", "text/css"),
    "arena.js": (_WEB / "arena.js", "text/javascript"),
}
_ERRORS = {403: "error_request", 404: "error_missing", 405: "error_missing", 413: "error_large", 429: "error_many"}
_COOKIE, _LANGUAGE = "arena", "language"
_YEAR = 365 * 24 * 3600


class Server:
    """Answer requests; one thread carries out the study."""

    def __init__(self, rating: Rating, study: Study, address: Address, clock: Callable[[], float] = time.time) -> None:
        self.rating, self.study, self.address, self.clock = rating, study, address, clock
        self.seal = Seal(rating.store.secret)
        self.worker = Worker(rating.transaction, (NameTakenError,))
        self.votes = Limit(burst=120, rate=2)  # of each rater
        self.joins = Limit(burst=60, rate=1)  # of each address, by typed names
        self.static = {name: (file.read_bytes(), kind) for name, (file, kind) in _STATIC.items()}

    def app(self) -> Starlette:
        """Make the application."""
        routes = [
            Route("/", self.home),
            Route("/join", self.join, methods=["POST"]),
            Route("/join/{invitation}", self.invitation),
            Route("/pair", self.pair),
            Route("/vote", self.vote, methods=["POST"]),
            Route("/undo", self.undo, methods=["POST"]),
            Route("/picture/{name}", self.picture),
            Route("/static/{name}", self.file),
        ]
        handlers: dict[Any, Any] = {HTTPException: self.refuse, ClientDisconnect: gone}
        handlers |= {DBAPIError: self.failed, UserError: self.failed}
        return Starlette(routes=routes, middleware=[Middleware(Guard, address=self.address)], exception_handlers=handlers)

    # ---------------------------------------------------------------- pages

    async def home(self, request: Request) -> Response:
        """Show the page of a rater, or where to begin."""
        key = request.query_params.get("key", "")
        if (reply := self._chosen_language(request, f"?key={self.seal.key}" if self.seal.is_key(key) else "")) is not None:
            return reply
        rater = self._rater(request)
        if rater is not None:
            questions = self.study.info.questions
            return self._page(request, "rate.html", csrf=self.seal.csrf(rater), questions=questions)
        if self.address.exposed and not self.seal.is_key(key):
            return self._page(request, "message.html", 403, error="error_key")
        return self._page(request, "start.html", key=key)

    async def invitation(self, request: Request) -> Response:
        """Show an invited rater where to begin."""
        token = request.path_params["invitation"]
        if (reply := self._chosen_language(request)) is not None:
            return reply
        try:
            name = self.seal.invited(token, self.clock())
        except ExpiredError:
            return self._page(request, "message.html", 403, error="error_expired")
        if name is None:
            return self._page(request, "message.html", 403, error="error_invitation")
        return self._page(request, "start.html", invitation=token, name=name)

    async def join(self, request: Request) -> Response:
        """Let a rater begin, by an invitation or under a name."""
        form = await read_form(request)
        token, key = form.get("invitation", ""), form.get("key", "")
        try:
            name = self.seal.invited(token, self.clock()) if token else rater_name(form.get("name", ""))
        except ExpiredError:
            return self._page(request, "message.html", 403, error="error_expired")
        if not token and self.address.exposed and not self.seal.is_key(key):
            return self._page(request, "message.html", 403, error="error_key")
        if name is None:
            if token:
                return self._page(request, "message.html", 403, error="error_invitation")
            return self._page(request, "start.html", 400, key=key, error="error_name")
        if not token:
            self.joins.check(request.client.host if request.client else "")
        try:
            rater = await self.worker.do(self.rating.join, name, self.clock(), bool(token))
        except NameTakenError:
            return self._page(request, "start.html", 409, key=key, name=name, error="error_taken")
        reply = RedirectResponse("/", 303)
        self._set_cookie(reply, _COOKIE, self.seal.session(rater.id), SESSION)
        return reply

    def _page(self, request: Request, template: str, status: int = 200, error: str = "", **values: Any) -> Response:
        language = self._language(request)
        texts = TEXTS[language]
        path = request.url.path if request.method == "GET" else "/"
        known = {"key": "", "name": "", "invitation": "", "path": path, **values, "error": texts[error] if error else ""}
        page = pages.render(_WEB / template, {"language": language, "languages": LANGUAGES, "texts": texts, **known})
        return HTMLResponse(page, status)

    # ---------------------------------------------------------------- pairs and votes

    async def pair(self, request: Request) -> Response:
        """Answer what a rater sees now."""
        return self._turn(await self.worker.do(self.rating.turn, self._known(request), self.clock()))

    async def vote(self, request: Request) -> Response:
        """Store a vote, and answer what the rater sees next."""
        rater = self._from_page(request)
        token, answers = await self._sent(request)
        return self._turn(await self.worker.do(self.rating.answer, rater, token, answers, self.clock()))

    async def _sent(self, request: Request) -> tuple[str, Answers]:
        return await read_answers(request, self.study.info.questions)

    async def undo(self, request: Request) -> Response:
        """Take the last vote back, and answer with its pair."""
        rater = self._from_page(request)
        return self._turn(await self.worker.do(self.rating.undo, rater, await read_token(request), self.clock()))

    def _turn(self, turn: Turn) -> Response:
        prompt = self.study.info.prompts[turn.prompt] if turn.token else None
        return JSONResponse({**asdict(turn), "prompt": prompt})

    async def picture(self, request: Request) -> Response:
        """Send one of the two pictures that a rater is shown."""
        view = self.rating.picture(self._known(request), request.path_params["name"])
        if view is None:
            raise HTTPException(404)
        file = self.study.files[view.model, view.prompt, view.seed]
        data = await run_in_threadpool(degraded_png if view.degraded else plain_png, file)
        return Response(data, media_type="image/png")

    async def file(self, request: Request) -> Response:
        """Send a stylesheet or script."""
        if request.path_params["name"] not in self.static:
            raise HTTPException(404)
        data, kind = self.static[request.path_params["name"]]
        return Response(data, media_type=kind, headers={"Cache-Control": "no-cache"})

    # ---------------------------------------------------------------- who asks

    def _rater(self, request: Request) -> int | None:
        rater = self.seal.rater(request.cookies.get(_COOKIE, ""))
        return rater if rater in self.rating.raters else None

    def _known(self, request: Request) -> int:
        """Return the rater of a request.  Raises HTTPException 401."""
        rater = self._rater(request)
        if rater is None:
            raise HTTPException(401)
        return rater

    def _from_page(self, request: Request) -> int:
        """Return the rater from whose page a request comes, and count it.  Raises HTTPException 401, 403 or 429."""
        rater = self._known(request)
        if not self.seal.is_csrf(request.headers.get("x-csrf", ""), rater):
            raise HTTPException(403)
        self.votes.check(rater)
        return rater

    def _language(self, request: Request) -> str:
        return language_of(request.cookies.get(_LANGUAGE), request.headers.get("accept-language", ""))

    def _chosen_language(self, request: Request, query: str = "") -> Response | None:
        """Keep the language that a link of a page chooses, and show that page again; None where none is chosen."""
        if (language := request.query_params.get("lang")) not in LANGUAGES:
            return None
        reply = RedirectResponse(request.url.path + query, 303)
        self._set_cookie(reply, _LANGUAGE, str(language), _YEAR)
        return reply

    def _set_cookie(self, reply: Response, name: str, value: str, seconds: int) -> None:
        reply.set_cookie(name, value, max_age=seconds, httponly=True, samesite="strict", secure=self.address.secure)

    # ---------------------------------------------------------------- what cannot be done

    async def refuse(self, request: Request, error: Exception) -> Response:
        """Answer with a plain page, or for the script of our page with JSON."""
        assert isinstance(error, HTTPException)
        key = _ERRORS.get(error.status_code, "session" if error.status_code == 401 else "error_request")
        return self._refusal(request, key, error.status_code, error.headers)

    async def failed(self, request: Request, error: Exception) -> Response:
        """Answer that the database failed; nothing was stored."""
        logging.getLogger(__name__).error("the database failed, and a vote was not stored: %s", str(error).splitlines()[0])
        return self._refusal(request, "error_database", 503, {"Retry-After": "2"})

    def _refusal(self, request: Request, key: str, status: int, headers: Any) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            reply = self._page(request, "message.html", status, error=key)
        else:
            reply = JSONResponse({"error": TEXTS[self._language(request)][key]}, status)
        reply.headers.update(headers or {})
        return reply


async def gone(request: Request, error: Exception) -> Response:
    """Answer nobody: the client has gone."""
    return Response(status_code=499)
