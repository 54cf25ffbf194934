"""The course of a study: who is shown which pair, and what becomes of an answer.

Everything is written to the database before it is said, and read back from there after a restart or an error.
"""

import hashlib
import hmac
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from neighbor_grpo.arena.assignment import Board, purposes, random_of
from neighbor_grpo.arena.store import Assignment, Rater, Store, Writing
from neighbor_grpo.arena.votes import OVERALL, Answer, Purpose

EXPIRE = 1800.0  # seconds after which the pairs of a rater who is not seen any more are given to others


class NameTakenError(ValueError):
    """Say that another rater has this name."""


@dataclass(frozen=True)
class Rules:
    """Hold how a study is carried out.  It may change at a restart."""

    votes: int = 50  # of each rater, at most as many as there are pairs
    repeat: float = 0.1  # share of them that is asked again, with sides swapped
    obvious: float = 0.0  # as many pairs with an obvious answer, as a share of the votes
    adaptive: bool = False
    expire: float = EXPIRE


@dataclass(frozen=True)
class View:
    """Hold which picture of the study stands on a side."""

    model: int
    prompt: int
    seed: int
    degraded: bool


@dataclass(frozen=True)
class Turn:
    """Hold what a rater sees: a pair, or nothing any more."""

    done: int
    total: int
    undo: str | None  # token of the vote that may be taken back
    token: str | None = None  # of the pair; None: the rater has finished
    prompt: int = 0
    left: str = ""  # id of the picture
    right: str = ""
    lost: bool = False  # the answer was to a pair that was given to others in the meantime


class Rating:
    """Carry out a study.  One thread calls it, except for `picture`."""

    def __init__(self, store: Store, rules: Rules) -> None:
        self.store, self.rules = store, rules
        self.pairs = store.info.pairs()
        self._writing: Writing | None = None
        self._wanted: dict[int, list[Purpose]] = {}
        self._load()

    def _load(self) -> None:
        """Read where the study stands."""
        self.raters = {rater.id: rater for rater in self.store.raters()}
        self._rows: dict[int, dict[int, Assignment]] = {rater: {} for rater in self.raters}
        self._views: dict[int, dict[str, View]] = {}
        self.board = Board(self.pairs, self.rules.adaptive)
        for row in self.store.assignments():
            self._rows[row.rater][row.id] = row
            if row.purpose == "vote":
                self.board.give(row.pair)
                self.board.show(row.pair, row.position is not None)
        self._overall = self.store.overall()
        for rows in self._rows.values():
            for row in rows.values():
                self._count_answer(row, 1)
        self._current = True

    @contextmanager
    def transaction(self) -> Iterator[Writing]:
        """Write what is done inside at once.  After an error, what is known is read from the database again."""
        if self._writing is not None:
            yield self._writing
            return
        if not self._current:
            self._load()
        self._current = False
        try:
            with self.store.writing() as self._writing:
                yield self._writing
        finally:
            self._writing = None
        self._current = True

    def join(self, name: str, now: float, invited: bool = False) -> Rater:
        """Add a rater; an invited one may come back.  Raises NameTakenError."""
        with self.transaction() as writing:
            known = next((rater for rater in self.raters.values() if rater.name == name), None)
            if known and not invited:
                raise NameTakenError(name)
            if known:
                return known
            rater = writing.add_rater(name, now)
        self.raters[rater.id], self._rows[rater.id] = rater, {}
        return rater

    def turn(self, rater: int, now: float) -> Turn:
        """Return what a rater sees now."""
        with self.transaction() as writing:
            self._advance(writing, rater, now)
        return self._turn(rater)

    def answer(self, rater: int, token: str, answers: Mapping[str, Answer], now: float) -> Turn:
        """Store the votes on the pair that is shown, and return what comes next.

        A second answer to the same pair changes nothing: the reply to the first one was lost.  Neither does an answer to a pair
        that was given to others in the meantime.
        """
        with self.transaction() as writing:
            lost = not any(row.token == token for row in self._rows[rater].values())
            row = self._shown(rater)
            if row is not None and row.token == token:
                writing.answer(row.id, answers, now)
                self._overall[row.id] = answers[OVERALL]
                self._rows[rater][row.id] = row = replace(row, answered=now)
                self._count_answer(row, 1)
            self._advance(writing, rater, now)
        return replace(self._turn(rater), lost=lost)

    def undo(self, rater: int, token: str, now: float) -> Turn:
        """Take the last vote back and show its pair again; nothing where `token` is not that of the last vote."""
        with self.transaction() as writing:
            row = self._last(rater)
            if row is not None and row.token == token:
                self._count_answer(row, -1)
                fresh = _token()
                writing.take_back(row.id, fresh, now)
                self._overall.pop(row.id)
                self._rows[rater][row.id] = replace(row, answered=None, shown=now, token=fresh)
            self._advance(writing, rater, now)
        return self._turn(rater)

    def picture(self, rater: int, name: str) -> View | None:
        """Return the picture that a rater is shown under this name."""
        return self._views.get(rater, {}).get(name)

    # ---------------------------------------------------------------- what comes next

    def _advance(self, writing: Writing, rater: int, now: float) -> None:
        """Show the next pair unless one is shown."""
        if self._shown(rater) is None:
            rows = self._rows[rater].values()
            wanted = self._purposes(rater)
            done = sum(row.answered is not None for row in rows)
            if done < len(wanted):
                self._show(writing, rater, wanted[done], now)

    def _purposes(self, rater: int) -> list[Purpose]:
        if rater not in self._wanted:
            votes, rng = min(self.rules.votes, len(self.pairs)), random_of(self.store.secret, "purposes", rater)
            self._wanted[rater] = purposes(votes, self.rules.repeat, self.rules.obvious, rng)
        return self._wanted[rater]

    def _show(self, writing: Writing, rater: int, purpose: Purpose, now: float) -> None:
        rows = self._rows[rater]
        position = sum(row.position is not None for row in rows.values())
        shown = {"position": position, "token": _token(), "shown": now}
        if purpose != "vote":
            pair, swapped = self._check(rater, purpose, position)
            (row,) = writing.add(rater, [{"pair": pair, "purpose": purpose, "swapped": swapped, **shown}])
            rows[row.id] = row
            return
        planned = self._plan(writing, rater, now)
        if planned:
            pair = self.board.first(planned, random_of(self.store.secret, "next", rater, position))
            writing.change(planned[pair].id, **shown)
            rows[planned[pair].id] = replace(planned[pair], **shown)  # type: ignore[arg-type]  # of a dict of all kinds
            self.board.show(pair)

    def _check(self, rater: int, purpose: Purpose, position: int) -> tuple[int, bool]:
        """Return the pair of an attention check, and whether it is swapped: a vote again, or any pair."""
        rng = random_of(self.store.secret, purpose, rater, position)
        rows = self._rows[rater].values()
        voted = sorted((row for row in rows if row.purpose == "vote" and row.answered), key=lambda row: row.position or 0)
        repeated = {row.pair for row in rows if row.purpose == "repeat"}
        fresh = [row for row in voted if row.pair not in repeated]
        if purpose == "repeat" and fresh:
            row = rng.choice(fresh[:-2] or fresh)  # the last two are still remembered
            return row.pair, not row.swapped
        return rng.randrange(len(self.pairs)), rng.random() < 0.5

    def _plan(self, writing: Writing, rater: int, now: float) -> dict[int, Assignment]:
        """Return what is planned for a rater, by pair; plan it where nothing is.

        A rater's votes are planned at once, which lets counts differ by one at most; adaptive choice plans one at a time.
        """
        rows = self._rows[rater]
        if not any(row.position is None for row in rows.values()):
            self._expire(writing, rater, now)
            seen = {row.pair for row in rows.values() if row.purpose == "vote"}
            number = 1 if self.rules.adaptive else max(0, min(self.rules.votes, len(self.pairs)) - len(seen))
            chosen = self.board.choose(number, seen, random_of(self.store.secret, "order", rater, len(seen)))
            sides = [random_of(self.store.secret, "sides", rater, pair).random() < 0.5 for pair in chosen]
            wanted = [{"pair": pair, "purpose": "vote", "swapped": side} for pair, side in zip(chosen, sides, strict=True)]
            rows.update({row.id: row for row in writing.add(rater, wanted)})
        return {row.pair: row for row in rows.values() if row.position is None}

    def _expire(self, writing: Writing, rater: int, now: float) -> None:
        """Take back the open pairs of the raters who are not seen any more."""
        for other, rows in self._rows.items():
            stale = [row for row in rows.values() if row.answered is None]
            seen = max(
                [self.raters[other].joined, *(time for row in rows.values() for time in (row.shown, row.answered) if time)]
            )
            if other != rater and stale and seen < now - self.rules.expire:
                writing.remove([row.id for row in stale])
                for row in stale:
                    del rows[row.id]
                    if row.purpose == "vote":
                        self.board.give(row.pair, -1)
                        self.board.show(row.pair, -(row.position is not None))
                self._views.pop(other, None)

    # ---------------------------------------------------------------- what is known

    def _shown(self, rater: int) -> Assignment | None:
        """Return the pair that is shown: after an undo the earlier one of two."""
        rows = [row for row in self._rows[rater].values() if row.position is not None and row.answered is None]
        return min(rows, key=lambda row: row.position or 0, default=None)

    def _last(self, rater: int) -> Assignment | None:
        """Return the last answered pair."""
        rows = [row for row in self._rows[rater].values() if row.answered is not None]
        return max(rows, key=lambda row: row.position or 0, default=None)

    def _count_answer(self, row: Assignment, count: int) -> None:
        if row.purpose == "vote" and row.answered is not None:
            self.board.answer(row.pair, self._overall[row.id], row.swapped, count)

    def _turn(self, rater: int) -> Turn:
        self._views[rater] = self._visible(rater)
        shown, last = self._shown(rater), self._last(rater)
        done = sum(row.answered is not None for row in self._rows[rater].values())
        undo = last.token if last else None
        if shown is None:
            return Turn(done, done, undo)
        total = max(len(self._purposes(rater)), done + 1)
        names = self._names(shown)
        return Turn(done, total, undo, shown.token, self.pairs[shown.pair].prompt, *names)

    def _names(self, row: Assignment) -> tuple[str, str]:
        """Return the ids of the left and the right picture, which only this showing of the pair has."""
        secret = self.store.secret.encode()
        left, right = (hmac.new(secret, f"{row.token}/{side}".encode(), hashlib.sha256).hexdigest()[:32] for side in "lr")
        return left, right

    def _visible(self, rater: int) -> dict[str, View]:
        """Return the pictures that a rater may ask for."""
        row = self._shown(rater)
        if row is None:
            return {}
        pair = self.pairs[row.pair]
        obvious = row.purpose == "obvious"
        first = View(pair.first, pair.prompt, pair.seed, False)
        second = View(pair.first if obvious else pair.second, pair.prompt, pair.seed, obvious)
        return dict(zip(self._names(row), (second, first) if row.swapped else (first, second), strict=True))


def _token() -> str:
    return secrets.token_urlsafe(16)
