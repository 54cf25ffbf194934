"""What follows a run elsewhere: TensorBoard, W&B, MLflow, SwanLab, trackio.  metrics.jsonl stays the record of the run.

Each tracker works in a thread of its own and at its own pace, so that a network which hangs does not hold up the training.
What it has been sent stands in RUN/trackers/NAME.json: a resumed run continues there.
"""

import json
import posixpath
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from secrets import choice
from string import ascii_lowercase, digits
from threading import Event, Thread
from typing import Any, Self

from accelerate.tracking import GeneralTracker
from torch import Tensor

from neighbor_grpo.config import Config
from neighbor_grpo.config.names import check_trackers
from neighbor_grpo.console import reason_of
from neighbor_grpo.errors import UserError
from neighbor_grpo.files import atomic
from neighbor_grpo.files.images import to_bytes
from neighbor_grpo.run.files import Figures
from neighbor_grpo.run.groups import Group
from neighbor_grpo.training.tracker_kinds import REWINDS, Shown, Start, begin, show

FOLDER = "trackers"  # in the run directory
RETRY = 30.0  # seconds from a failed attempt to the next
PATIENCE, HURRY = 60.0, 5.0  # seconds for what is not sent yet: at the end of a run, and when it stops
FIGURES, EVALUATION, ROLLOUT = "figures", "evaluation", "rollout"  # what is sent, each in the order of iterations


@dataclass(frozen=True)
class _Job:
    kind: str
    iteration: int
    send: Callable[[GeneralTracker], None]


@dataclass
class _Follower:
    """Send jobs to one tracker, in a thread."""

    kind: str
    start: Start
    sent: dict[str, int]  # the last iteration by kind of job
    jobs: SimpleQueue[_Job | None] = field(default_factory=SimpleQueue)
    queued: dict[str, int] = field(default_factory=dict)  # as `sent`, with what waits
    complaints: list[str] = field(default_factory=list)  # what the user should know
    begun: Event = field(default_factory=Event)
    ending: Event = field(default_factory=Event)
    error: BaseException | None = None  # which the start raised
    failing: bool = False

    def __post_init__(self) -> None:
        self.queued = dict(self.sent)
        self.thread = Thread(target=self._work, name=f"tracker {self.kind}", daemon=True)
        self.thread.start()

    def put(self, job: _Job) -> None:
        """Send something once what waits has been sent; pictures are left out while nothing can be sent."""
        if self.failing and job.kind != FIGURES:
            return
        self.queued[job.kind] = max(job.iteration, self.queued.get(job.kind, -1))
        self.jobs.put(job)

    def finish(self, seconds: float) -> None:
        """Send what waits, for at most so long, and close the tracker."""
        if self.ending.is_set():
            return
        self.ending.set()
        self.jobs.put(None)
        self.thread.join(seconds)
        if self.thread.is_alive() and not self.failing:
            self.complaints.append(f"tracker {self.kind} still sends after {seconds:g} s, and is left to itself")

    def _work(self) -> None:
        try:
            tracker, number = begin(self.kind, self.start)
            self.start = Start(**{**vars(self.start), "id": number})
            self._keep()
        except BaseException as error:  # of somebody else's code; raised again by who waits for `begun`
            self.error = error
            return
        finally:
            self.begun.set()
        while (job := self.jobs.get()) is not None:
            while not self._sent(tracker, job):
                if self.ending.is_set():
                    return
                self.ending.wait(RETRY)
        self._attempt(tracker.finish)

    def _sent(self, tracker: GeneralTracker, job: _Job) -> bool:
        if not self._attempt(lambda: job.send(tracker)):
            return False
        self.sent[job.kind] = max(job.iteration, self.sent.get(job.kind, -1))
        self._keep()
        return True

    def _attempt(self, do: Callable[[], None]) -> bool:
        try:
            do()
        except Exception as error:  # of somebody else's code, or of the network
            if not self.failing:
                self.complaints.append(
                    f"warning: tracker {self.kind} takes nothing ({reason_of(error, 200)}): the run goes on, metrics.jsonl has "
                    f"every figure; figures are sent again every {RETRY:g} s and when the run is resumed, pictures are left out"
                )
            self.failing = True
            return False
        self.failing = False
        return True

    def _keep(self) -> None:
        """Write down what has been sent."""
        known = {"version": atomic.VERSION, "id": self.start.id, "sent": self.sent}
        with atomic.writing(self.start.folder / f"{self.kind}.json", durable=False) as aside:
            aside.write_text(json.dumps(known))


class Trackers:
    """Send the figures, pictures and settings of a run to its trackers; without any, on other ranks too, do nothing."""

    def __init__(self, followers: Sequence[_Follower] = (), leftover: Path | None = None, rollouts: int = 0) -> None:
        self.followers, self.leftover, self.rollouts = followers, leftover, rollouts
        self.say: Callable[[str], None] = print  # what shows a warning

    @classmethod
    def begin(cls, config: Config, run: Path, resumed: bool, done: int) -> Self:
        """Begin or resume the run of each tracker after `done` iterations.  Raises UserError where one cannot begin."""
        check_trackers(config.trackers.use)
        folder = run / FOLDER
        if not resumed:  # what a failed start left there
            shutil.rmtree(folder, ignore_errors=True)
        if config.trackers.use:
            folder.mkdir(exist_ok=True)
        name = config.trackers.name or "/".join(run.absolute().parts[-2:])
        trackers = cls([], None if resumed else folder, config.trackers.rollouts)
        try:
            trackers.followers = [_follower(kind, config, folder, name, done) for kind in config.trackers.use]
            for one in trackers.followers:
                _wait_for(one)
        except BaseException:
            trackers.abandon()
            raise
        return trackers

    def figures(self, line: Figures, again: bool = False) -> None:
        """Send a line of metrics.jsonl, unless it was sent before.  again: it has another evaluation now, which is sent."""
        iteration = int(line["iteration"])
        values = {tag(key): value for key, value in line.items() if key != "iteration" and value is not None}
        anew = {key: value for key, value in values.items() if key.startswith("eval") or key == "time/evaluate"}
        for one in self.followers:
            known = iteration <= one.queued.get(FIGURES, -1)
            if chosen := anew if known and again else {} if known else values:
                one.put(_Job(FIGURES, iteration, partial(_log, values=chosen, step=iteration)))
        self._complain()

    def evaluation(self, iteration: int, pictures: Tensor, prompts: Sequence[str]) -> None:
        """Send the pictures [P, S, ...] of an evaluation's first prompts."""
        if self.followers:
            captions = [f"seed {seed}" for seed in range(pictures.shape[1])]
            rows = [Shown(text, to_bytes(row), captions) for text, row in zip(prompts, pictures, strict=False)]
            self._show(EVALUATION, iteration, {f"{EVALUATION}/{n:02d}": row for n, row in enumerate(rows)})

    def rollout(self, iteration: int, group: Group | None) -> None:
        """Send the pictures of a group that an iteration has rolled out, every so many iterations."""
        if group and self.followers and self.rollouts and (iteration - 1) % self.rollouts == 0:
            self._show(ROLLOUT, iteration, {ROLLOUT: Shown(group.prompt, group.pictures, group.captions)})

    def _show(self, kind: str, iteration: int, rows: Mapping[str, Shown]) -> None:
        def send(tracker: GeneralTracker) -> None:
            for key, row in rows.items():
                show(tracker, key, iteration, row)

        for one in self.followers:
            if iteration > one.queued.get(kind, -1):
                one.put(_Job(kind, iteration, send))

    def _complain(self) -> None:
        """Say what the user should know, once, in the thread of the training."""
        for one in self.followers:
            while one.complaints:
                self.say(one.complaints.pop(0))

    def finish(self, seconds: float = HURRY) -> None:
        """Send what waits, for at most so long, and close the trackers."""
        for one in self.followers:
            one.finish(seconds)
        self._complain()

    def abandon(self) -> None:
        """Close the trackers of a run that does not begin after all, and remove their files if it is a new one."""
        self.finish()
        if self.leftover:
            shutil.rmtree(self.leftover, ignore_errors=True)


def _follower(kind: str, config: Config, folder: Path, name: str, done: int) -> _Follower:
    """Start a tracker's thread where it stopped, or at the beginning."""
    file = folder / f"{kind}.json"
    known: dict[str, Any] = atomic.read_json(file) if file.is_file() else {}
    sent = known.get("sent", {})
    if kind in REWINDS:
        sent = {what: min(iteration, done) for what, iteration in sent.items()}
    number = known.get("id") or "".join(choice(ascii_lowercase + digits) for _ in range(21))
    start = Start(config.trackers, settings_of(config), name, number, folder, bool(known), 1 + max(sent.values(), default=-1))
    return _Follower(kind, start, sent)


def _log(tracker: GeneralTracker, values: Figures, step: int) -> None:
    tracker.log(values, step=step)


def _wait_for(one: _Follower) -> None:
    """Wait until a tracker has begun.  Raises UserError where it cannot."""
    one.begun.wait()
    if one.error:
        raise UserError(
            f"tracker {one.kind} cannot begin ({reason_of(one.error, 300)}): mend it, set trackers.offline=true, or leave it "
            "out of trackers.use"
        ) from one.error


def settings_of(config: Config) -> dict[str, Any]:
    """Return the settings of a run by their dotted keys; lists and null as JSON, as trackers take them."""

    def flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in section.items():
            found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {tag(prefix + key): value}
        return found

    return {
        key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for key, value in flat(config.model_dump(mode="json")).items()
    }


def tag(key: str) -> str:
    """Return a key of metrics.jsonl as every tracker takes it.

    >>> tag("reward//tmp/a b@2.py:score")
    'reward/tmp/a b_2.py:score'
    """
    return posixpath.normpath(re.sub(r"[^\w. :/-]", "_", key, flags=re.ASCII).replace("//", "/"))
