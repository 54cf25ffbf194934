"""Groups on disk: what one prompt's rollouts looked like, what they scored and what each was worth to the method.

RUN/groups/<iteration>/ holds the pictures of all G members, 00.png, 01.png, ..., a manifest, and group.json:

    {"prompt": "a red circle", "rewards": {"clip": [0.31, null, ...]}, "advantages": [-0.42, 0.0, ...]}

Each list has G numbers.  A reward is null without a score; "advantages" is null for a method that gives none to its samples.
A group is kept of the first iteration, which the untrained model rolls out, and of each iteration that ends with an evaluation.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from neighbor_grpo.files import atomic

if TYPE_CHECKING:  # torch takes seconds to load, and a page needs only the files
    from torch import Tensor

GROUPS = "groups"  # the folder in a run, and the kind of the directories in it
Rewards = Mapping[str, Sequence[float | None]]  # G by the name of the reward, None without a score


@dataclass(frozen=True)
class Group:
    """Hold G samples of one prompt as they were rolled out."""

    prompt: str
    pictures: "Tensor"  # bytes [G, 3, H, W]; of videos their key frames [G, F, 3, H, W]
    rewards: Rewards
    advantages: Sequence[float] | None  # None: the method gives none to samples

    @property
    def captions(self) -> list[str]:
        """Return the rewards and the advantage of each member in words."""
        named = [*self.rewards.items(), *([("advantage", self.advantages)] if self.advantages else [])]
        shown = [[f"{name} {'–' if value is None else f'{value:.4g}'}" for value in values] for name, values in named]
        return [", ".join(member) for member in zip(*shown, strict=True)]


@dataclass(frozen=True)
class KeptGroup:
    """Hold a group that was read."""

    iteration: int
    prompt: str
    files: tuple[Path, ...]  # G pictures
    rewards: Rewards
    advantages: Sequence[float] | None


def save_group(run: Path, iteration: int, group: Group) -> None:
    """Save a group of a run."""
    from neighbor_grpo.files.images import save_png

    with atomic.directory(run / GROUPS / f"{iteration:06d}", GROUPS) as aside:
        for member, picture in enumerate(group.pictures):
            save_png(picture / 255, aside / f"{member:02d}.png")
        known = {"prompt": group.prompt, "rewards": group.rewards, "advantages": group.advantages}
        (aside / "group.json").write_text(json.dumps(known, allow_nan=False))


def read_group(folder: Path) -> KeptGroup:
    """Read what `save_group` wrote for one iteration.  Raises DamagedError."""
    atomic.check(folder, GROUPS)
    found = json.loads((folder / "group.json").read_text())
    members = range(len(next(iter(found["rewards"].values()))))
    files = tuple(folder / f"{member:02d}.png" for member in members)
    return KeptGroup(int(folder.name), found["prompt"], files, found["rewards"], found["advantages"])


def read_groups(run: Path, newest_first: bool = False) -> Iterator[KeptGroup]:
    """Yield the groups of a run that are not damaged, in the order of iterations or against it; none where the run kept none.

    Each is read when it is asked for, as the check of its files takes time.
    """
    return atomic.undamaged(sorted((run / GROUPS).glob("[0-9]*"), reverse=newest_first), read_group)
