"""What raters send: forms and JSON, of which nothing is believed."""

import json
from collections.abc import Sequence
from typing import Any, TypeAlias, get_args
from urllib.parse import parse_qs

from starlette.exceptions import HTTPException
from starlette.requests import Request

from neighbor_grpo.arena.guard import read_body
from neighbor_grpo.arena.votes import Answer

MOST = 64  # characters of a name
Answers: TypeAlias = dict[str, Answer]


async def read_form(request: Request) -> dict[str, str]:
    """Read a form.  Raises HTTPException 400 or 413."""
    try:
        fields = parse_qs((await read_body(request)).decode(), max_num_fields=10)
    except ValueError as error:
        raise HTTPException(400) from error
    return {name: values[0] for name, values in fields.items()}


async def read_token(request: Request) -> str:
    """Read which assignment a request is about.  Raises HTTPException."""
    return _token(await _object(request))


async def read_answers(request: Request, questions: Sequence[str]) -> tuple[str, Answers]:
    """Read an assignment and the answers to exactly these questions.  Raises HTTPException."""
    found = await _object(request)
    answers = found.get("answers")
    if not isinstance(answers, dict) or answers.keys() != set(questions):
        raise HTTPException(400)
    if not all(isinstance(answer, str) and answer in get_args(Answer) for answer in answers.values()):
        raise HTTPException(400)
    return _token(found), answers


def _token(found: dict[str, Any]) -> str:
    token = found.get("assignment")
    if not isinstance(token, str):
        raise HTTPException(400)
    return token


async def _object(request: Request) -> dict[str, Any]:
    """Read a JSON object.  Raises HTTPException 400, 413, or 415 for what a form of another page could send."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415)
    try:
        found = json.loads(await read_body(request))
    except (ValueError, RecursionError) as error:
        raise HTTPException(400) from error
    if not isinstance(found, dict):
        raise HTTPException(400)
    return found


def rater_name(text: str) -> str | None:
    """Return a name as it is stored, None where it is none: 1 to 64 characters that can be printed.

    >>> rater_name("  Ada   Lovelace "), rater_name(" "), rater_name("x" * 65), rater_name("a\\x00")
    ('Ada Lovelace', None, None, None)
    """
    name = " ".join(text.split())
    return name if 0 < len(name) <= MOST and name.isprintable() else None
