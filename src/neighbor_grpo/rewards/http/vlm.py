"""A vision-language model as the judge, behind any OpenAI-compatible endpoint (arXiv 2503.05236 trains one)."""

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
from neighbor_grpo.rewards.http.connection import Backoff, Concurrency, Fault, Link, Retries, Timeout
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
_PIECE = re.compile(rf"\n|(?=\b(?:{'|'.join(AXES)})\s+score\b)", re.IGNORECASE)
_SCORE = re.compile(
    r"(?P<axis>\w+)\s+score\s*"
    r"(?:[(\[]\s*(?:1\s*(?:[-–—]|to)\s*5|out\s+of\s+5|/\s*5)\s*[)\]])?\s*[:=]\s*"
    r"(?P<number>[-+]?\d+(?:\.\d+)?)(?:\s*(?:/|out\s+of)\s*5(?:\.0+)?(?![\d.]))?"
    r"\s*(?:[-–—(,;.!][^\d/%]*)?",  # a remark, but no digit that might be part of another scale or a range
    re.IGNORECASE,
)


def parse(reply: str, axis: str) -> float:
    """The score of an axis, or the mean of all for "mean", in a reply with lines such as "**Style Score (1-5):** 3.5".

    ValueError where it is missing, given twice with different values, or not within 1 to 5.
    """
    plain = re.sub(r"[*_`#~]", "", unicodedata.normalize("NFKC", reply))  # bold; full-width digits and colons
    found: dict[str, set[float]] = {name: set() for name in AXES}
    for piece in _PIECE.split(plain):
        match = _SCORE.fullmatch(piece.strip())
        if match and match["axis"].lower() in found:
            found[match["axis"].lower()].add(float(match["number"]))
    wanted = AXES if axis == "mean" else (axis,)
    for name in wanted:
        if len(found[name]) != 1:
            raise ValueError(f"{'several' if found[name] else 'no'} {name} scores")
        if not 1 <= min(found[name]) <= 5:
            raise ValueError(f"a {name} score of {min(found[name]):g}, outside 1 to 5")
    return sum(min(found[name]) for name in wanted) / len(wanted)


def read_reply(body: bytes) -> str:
    """The text of a chat completion, without its last line where it was cut short.  ValueError for anything else."""
    try:
        choice = read_object(body)["choices"][0]
        text = choice["message"]["content"]
        cut = choice.get("finish_reason") == "length"
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError("the answer is no chat completion") from error
    if not isinstance(text, str):
        raise ValueError("the completion has no text")
    return text.rpartition("\n")[0] if cut else text


@dataclass(frozen=True, config=STRICT)
class UnifiedReward:
    """Scores from 1 to 5 by a judge such as UnifiedReward.

    The default template is this project's own.  Published scores were asked for in other words: to compare with them, write
    those into a file, {prompt} in the prompt's place, and give its path as `template`.  Its lines must be as `parse` reads.
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
    api_key_env: Annotated[str, Field(description="environment variable that holds the API key, if one is needed")] = (
        "OPENAI_API_KEY"
    )

    def __post_init__(self) -> None:
        _ = self.link  # made here, by one thread

    @cached_property
    def link(self) -> Link:
        return Link(self.timeout, self.retries, self.backoff, self.concurrency, self._key)

    @property
    def counts(self) -> Counter[str]:
        """See Link; and "unparsable", replies that were no score."""
        return self.link.counts

    @cached_property
    def text(self) -> str:
        """The template itself, read once."""
        if "{prompt}" in self.template:
            return self.template
        try:
            text = Path(self.template).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError("the judge's template is neither a text with {prompt} in it nor a readable text file") from error
        if "{prompt}" not in text:
            raise UserError(f"the judge's template {self.template} has no {{prompt}} in it: say where the prompt goes")
        return text

    @property
    def id(self) -> dict[str, str]:
        """What a score means: to be stored with every number."""
        digest = hashlib.sha256(self.text.encode()).hexdigest()
        return {"model": self.model, "axis": self.axis, "template_sha256": digest, "template": self.text}

    def load(self) -> None:
        """Has the model look at a grey square: that shows a wrong url, model or key before anything is computed."""
        for name in ("url", "model"):
            if not getattr(self, name):
                raise UserError(f"the judge has no {name}: set the url of an OpenAI-compatible API and the id of a model there")
        body = self._body(torch.full((3, 64, 64), 0.5), "a grey square")
        try:
            read_reply(self.link.run(self.link.once("POST", self._at, body)))
        except (Fault, ValueError) as error:
            raise UserError(
                f"no judge {self.model} at {self.url} ({error}): correct url and model, or the key in {self.api_key_env}"
            ) from error

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> list[float | Exception]:
        return self.link.run(self._all(images, prompts))

    async def _all(self, images: Tensor, prompts: list[str]) -> list[float | Exception]:
        return list(await asyncio.gather(*(self._one(*row) for row in zip(images, prompts, strict=True))))

    async def _one(self, image: Tensor, prompt: str) -> float | Exception:
        async with self.link.turn:
            try:
                body = await asyncio.to_thread(self._body, image, prompt)
                reply = await self.link.ask(self._at, body, read_reply)
            except Exception as error:  # this picture's fault, and no other's
                return error
        try:
            return parse(reply, self.axis)
        except ValueError as error:  # never asked again: at temperature 0 the reply would be the same
            self.counts["unparsable"] += 1
            return ValueError(f"the judge gave {error}: {self.link.short(reply)!r}")

    @property
    def _at(self) -> str:
        return f"{self.url.rstrip('/')}/chat/completions"

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
