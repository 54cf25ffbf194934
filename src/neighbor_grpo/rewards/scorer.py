"""The signature of a reward, and the record that is made of a reward when it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from inspect import isroutine
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from neighbor_grpo.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


class Reward(Protocol):
    """Score pictures, higher is better.

    A reward may have these attributes, which `make_scorer` reads:
        groupwise  True: it compares the pictures of one prompt, and each call gets the pictures of one prompt
        of_videos  True: it scores videos [N, T, 3, H, W]; other rewards score a video by its frames
        id         settings that decide the numbers, as JSON; by default the fields of a dataclass
        counts     counters that a run logs, such as the requests to a server
        prefer     `Preference`, which decides pairs for a win rate
    """

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]], /
    ) -> Tensor | Sequence[float | BaseException]:
        """Score images [N, 3, H, W] in [0, 1] with N prompts and N dicts of metadata.  Returns N numbers.

        A picture without a score has NaN in its place, or an exception that says why.
        """


class Preference(Protocol):
    """Compare pairs of pictures."""

    def __call__(
        self, first: Tensor, second: Tensor, prompts: list[str], metadata: list[dict[str, Any]], /
    ) -> Tensor | Sequence[float | BaseException]:
        """Return P(first is better) for each of N pairs, or an exception that says why it is missing."""


@runtime_checkable
class Loadable(Protocol):
    """Describe a reward that reads weights or asks a server before its first use."""

    def load(self) -> None:
        """Load what scoring needs.  Raises UserError if something is missing."""


FILE_MARK = "@"  # in the name of a module out of a user's file, between the file's name and a digest


@dataclass(frozen=True)
class Scorer:
    """Hold a loaded reward and all that its users need to know about it."""

    name: str  # as in the configuration: "hpsv2.1", "path/to/file.py:function"
    function: Reward
    groupwise: bool = False  # compares the pictures of one prompt
    of_videos: bool = False  # scores videos [N, T, 3, H, W]
    identity: Mapping[str, Any] = field(default_factory=dict)  # "is" (class or function) and settings, kept with the scores
    counts: Mapping[str, int] = field(default_factory=dict)  # counters of a server's requests; they grow while it scores
    prefer: Preference | None = None  # decides pairs for a win rate

    @property
    def settings(self) -> dict[str, Any]:
        """Return the part of the identity that can be set."""
        return {key: value for key, value in self.identity.items() if key != "is"}


def make_scorer(name: str, reward: Reward) -> Scorer:
    """Make the record of a loaded reward.  Raises UserError if one of its attributes has another type."""
    named: Any = reward if isroutine(reward) else type(reward)
    # this function alone reads optional attributes of a reward
    if hasattr(reward, "id"):
        settings = reward.id
    else:
        settings = asdict(reward) if is_dataclass(reward) and not isinstance(reward, type) else {}
    flags = {key: getattr(reward, key, False) for key in ("groupwise", "of_videos")}
    for key, value in flags.items():
        if not isinstance(value, bool):
            raise UserError(f"reward {name}: {key} is {value!r}: set True or False")
    if not isinstance(settings, Mapping):
        raise UserError(f"reward {name}: id is a {type(settings).__name__}: make it a dict of settings")
    counts, prefer = getattr(reward, "counts", {}), getattr(reward, "prefer", None)
    if not isinstance(counts, Mapping):
        raise UserError(f"reward {name}: counts is a {type(counts).__name__}: make it a dict of numbers")
    if not (prefer is None or callable(prefer)):
        raise UserError(f"reward {name}: prefer is a {type(prefer).__name__}: make it a function")
    module = named.__module__.partition(FILE_MARK)[0]  # the same wherever the file lies
    return Scorer(
        name, reward, **flags, identity={"is": f"{module}.{named.__qualname__}", **settings}, counts=counts, prefer=prefer
    )
