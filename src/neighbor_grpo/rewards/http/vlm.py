"""Scores by a vision-language model behind an OpenAI-compatible API, such as UnifiedReward (arXiv 2503.05236)."""

import asyncio
import base64
import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from neighbor_grpo.errors import STRICT, UserError
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
from neighbor_grpo.rewards.http.protocol import png, read_object

AXES = ("alignment", "coherence", "style")
TEMPLATE = """\
You grade pictures made by a text-to-image model. The request was:

{prompt}

Grade the picture on three scales from 1 (worst) to 5 (best); halves are allowed.
- Alignment: are the objects, attributes, counts and relations of the request in the picture?
- Coherence: is the picture free of broken shapes, artefacts and things that cannot be?
- Style: is it pleasing, with light, colour and composition that suit the request?

Answer with these three lines and nothing else, a number in the place of each X:
Alignment Score (1-5): X
Coherence Score (1-5): X
Style Score (1-5): X
"""
_MAX_REPLY = 1 << 18  # characters
_LINE = re.compile(rf"\n|(?=\b(?:{'|'.join(AXES)})\s+score\b)", re.IGNORECASE)
_SCORE = re.compile(
    r"(?P<axis>\w+)\s+score\s*"
    r"(?:[(\[]\s*(?:1\s*(?:[-–—]|to)\s*5|out\s+of\s+5|/\s*5)\s*[)\]])?\s*[:=]\s*"
    r"(?P<number>[-+]?\d+(?:\.\d+)?)(?:\s*(?:/|out\s+of)\s*5(?:\.0+)?(?![\d.]))?"
    r"\s*(?:[-–—(,;.!][^\d/%]*)?",  # a remark; a digit might belong to another scale or a range
    re.IGNORECASE,
)


def parse(reply: str, axis: str) -> float:
    """Read the score of an axis, or the mean of all for "mean", from lines such as "**Style Score (1-5):** 3.5".

    Raises ValueError if it is missing, if it stands there twice with different values, or if it is outside 1 to 5.
    """
    plain = re.sub(r"[*_`#~]", "", unicodedata.normalize("NFKC", reply))  # bold; full-width digits and colons
    plain = re.sub(r"[^\S\n]+", " ", plain)  # long runs of spaces would take the patterns long
    scores: dict[str, set[float]] = {name: set() for name in AXES}
    for line in _LINE.split(plain):
        match = _SCORE.fullmatch(line.strip())
        if match and match["axis"].lower() in scores:
            scores[match["axis"].lower()].add(float(match["number"]))
    wanted = AXES if axis == "mean" else (axis,)
    for name in wanted:
        if len(scores[name]) != 1:
            raise ValueError(f"{'several' if scores[name] else 'no'} {name} scores")
        if not 1 <= min(scores[name]) <= 5:
            raise ValueError(f"a {name} score of {min(scores[name]):g}, outside 1 to 5")
    return sum(min(scores[name]) for name in wanted) / len(wanted)


def read_reply(body: bytes) -> str:
    """Read the text of a chat completion, without its last line if it was cut short.  Raises ValueError for anything else."""
    try:
        choice = read_object(body)["choices"][0]
        text = choice["message"]["content"]
        cut = choice.get("finish_reason") == "length"
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError("the answer is not a chat completion") from error
    if not isinstance(text, str):
        raise ValueError("the completion has no text")
    if len(text) > _MAX_REPLY:
        raise ValueError(f"the completion has more than {_MAX_REPLY} characters")
    return text.rpartition("\n")[0] if cut else text


@dataclass(frozen=True, config=STRICT)
class UnifiedReward:
    """Score pictures from 1 to 5 by a vision-language model such as UnifiedReward.

    The default template is this project's own.  To compare with published scores, write the text that they used into a file,
    with {prompt} in the place of the prompt, and set `template` to its path.  Replies must have lines that `parse` reads.
    """

    url: Annotated[str, Field(description="of the API, such as http://127.0.0.1:8000/v1")] = ""
    model: Annotated[str, Field(description="id of the model there")] = ""
    template: Annotated[str, Field(description="text with {prompt} in it, or the path of a text file")] = TEMPLATE
    axis: Annotated[
        Literal["alignment", "coherence", "style", "mean"], Field(description="score to read, or the mean of the three")
    ] = "alignment"
    max_tokens: Annotated[int, Field(ge=1, description="length of a reply")] = 512
    timeout: Timeout = 60.0
    retries: Retries = 4
    backoff: Backoff = 0.5
    concurrency: Concurrency = 8
    api_key_env: Annotated[str, Field(description="environment variable with the API key, if the API needs one")] = (
        "OPENAI_API_KEY"
    )

    def __post_init__(self) -> None:
        """Make the connection now, in one thread."""
        _ = self.connection

    @cached_property
    def connection(self) -> Connection:
        """Return the connection to the API."""
        return Connection(self.timeout, self.retries, self.backoff, self.concurrency, self._key)

    @property
    def counts(self) -> Counter[str]:
        """Return the counters of `Connection`, and "unparsable": replies without a score."""
        return self.connection.counts

    @cached_property
    def text(self) -> str:
        """Return the text of the template.  Raises UserError if it has no place for the prompt."""
        if "{prompt}" in self.template:
            return self.template
        try:
            text = Path(self.template).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a home that is not known
            raise UserError(
                "unified_reward: template is neither a text with {prompt} nor a text file: set one of them"
            ) from error
        if "{prompt}" not in text:
            raise UserError(f"unified_reward: template {self.template} has no {{prompt}} in it: add it where the prompt goes")
        return text

    @property
    def id(self) -> dict[str, str]:
        """Return what decides the scores: model, axis and template."""
        digest = hashlib.sha256(self.text.encode()).hexdigest()
        return {"model": self.model, "axis": self.axis, "template_sha256": digest, "template": self.text}

    def load(self) -> None:
        """Score a grey square, so that a wrong url, model or key shows now.  Raises UserError."""
        if not (self.url and self.model):
            raise UserError("unified_reward needs url and model: set the url of an OpenAI-compatible API and the id of a model")
        check_url("unified_reward", self.url)
        body = self._body(torch.full((3, 64, 64), 0.5), "a grey square")
        try:
            read_reply(self.connection.run(self.connection.send("POST", self._at("chat/completions"), body)))
        except (AttemptError, ValueError) as error:
            raise UserError(
                f"unified_reward: no model {self.model} at {self.url} ({error}): "
                f"correct url and model, or the key in {self.api_key_env}"
            ) from error

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float | Exception]:
        """Score pictures [N, 3, H, W]."""
        return self.connection.run(self._score(images, prompts))

    async def _score(self, images: Tensor, prompts: list[str]) -> list[float | Exception]:
        return list(await asyncio.gather(*(self._score_one(*row) for row in zip(images, prompts, strict=True))))

    async def _score_one(self, image: Tensor, prompt: str) -> float | Exception:
        async with self.connection.slots:
            try:
                body = await asyncio.to_thread(self._body, image, prompt)
                reply = await self.connection.request(self._at("chat/completions"), body, read_reply, self._at("models"))
            except (ValueError, RequestError) as error:  # a picture that cannot be encoded, or a request that was given up
                return error
        try:
            return parse(reply, self.axis)
        except ValueError as error:  # not retried: at temperature 0 the reply would be the same
            self.counts["unparsable"] += 1
            return ValueError(f"the reply has {error}: {self.connection.shorten(reply)!r}")

    def _at(self, path: str) -> str:
        return f"{self.url.rstrip('/')}/{path}"

    def _body(self, image: Tensor, prompt: str) -> bytes:
        picture = {"url": f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"}
        content = [
            {"type": "image_url", "image_url": picture},
            {"type": "text", "text": self.text.replace("{prompt}", prompt)},
        ]
        request: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
        }
        return json.dumps(request).encode()

    def _key(self) -> str:
        return os.environ.get(self.api_key_env, "").strip()
