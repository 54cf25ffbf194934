"""The database of a study, SQLite or PostgreSQL: the study, its raters, the pairs that were given to them, and their votes.

A row of `assignments` is a pair that a rater was given: planned (no position), shown (a position and a token), or answered.
Its votes, one for each question, are written in the transaction that marks it as answered.
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    Text,
    Update,
    bindparam,
    delete,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError

from neighbor_grpo.arena.database import Database
from neighbor_grpo.arena.study import StudyInfo
from neighbor_grpo.arena.votes import DEGRADED, OVERALL, Answer, Purpose, Vote
from neighbor_grpo.errors import UserError

VERSION = 1  # of the tables
_META = MetaData()
_STUDY = Table(
    "study", _META, Column("version", Integer, primary_key=True), Column("info", Text, nullable=False),
    Column("secret", String(64), nullable=False),
)  # fmt: skip
_RATERS = Table(
    "raters", _META, Column("id", Integer, primary_key=True), Column("name", Text, nullable=False, unique=True),
    Column("joined", Float, nullable=False),
)  # fmt: skip
_ASSIGNMENTS = Table(
    "assignments", _META, Column("id", Integer, primary_key=True),
    Column("rater", ForeignKey("raters.id"), nullable=False, index=True), Column("pair", Integer, nullable=False),
    Column("purpose", String(16), nullable=False), Column("swapped", Boolean, nullable=False),
    Column("position", Integer), Column("token", String(32), unique=True), Column("shown", Float), Column("answered", Float),
)  # fmt: skip
_VOTES = Table(
    "votes", _META, Column("assignment", ForeignKey("assignments.id"), primary_key=True),
    Column("question", String(64), primary_key=True), Column("answer", String(16), nullable=False),
)  # fmt: skip


@dataclass(frozen=True)
class Assignment:
    """Hold a pair that a rater was given; times in seconds since 1970."""

    id: int
    rater: int
    pair: int  # number of the pair in the study
    purpose: Purpose
    swapped: bool  # the pair's second model is on the left
    position: int | None = None  # among what the rater is shown; None: planned
    token: str | None = None  # what the page calls it
    shown: float | None = None
    answered: float | None = None


@dataclass(frozen=True)
class Rater:
    """Hold a rater."""

    id: int
    name: str
    joined: float


_ADD_VOTES = insert(_VOTES)


@cache
def _change(*fields: str) -> Update:
    """Return the statement that changes these fields of an assignment; making one takes longer than carrying it out."""
    values: dict[str, Any] = {name: bindparam(name) for name in fields}
    return update(_ASSIGNMENTS).where(_ASSIGNMENTS.c.id == bindparam("assignment")).values(values)


class Writing:
    """Write within a transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add_rater(self, name: str, now: float) -> Rater:
        """Add a rater."""
        done = self._connection.execute(insert(_RATERS).values(name=name, joined=now).returning(_RATERS.c.id))
        return Rater(done.scalar_one(), name, now)

    def add(self, rater: int, wanted: Sequence[Mapping[str, Any]]) -> list[Assignment]:
        """Add assignments of a rater; each mapping holds fields of `Assignment`."""
        rows = [{"rater": rater, "position": None, "token": None, "shown": None, **fields} for fields in wanted]
        if not rows:
            return []
        statement = insert(_ASSIGNMENTS).returning(_ASSIGNMENTS.c.id, sort_by_parameter_order=True)
        ids = self._connection.execute(statement, rows).scalars().all()
        return [Assignment(id=number, **row) for number, row in zip(ids, rows, strict=True)]

    def change(self, assignment: int, **fields: Any) -> None:
        """Change fields of an assignment."""
        self._connection.execute(_change(*fields), {"assignment": assignment, **fields})

    def answer(self, assignment: int, answers: Mapping[str, Answer], now: float) -> None:
        """Store the votes of an assignment."""
        self.change(assignment, answered=now)
        rows = [{"assignment": assignment, "question": question, "answer": answer} for question, answer in answers.items()]
        self._connection.execute(_ADD_VOTES, rows)

    def take_back(self, assignment: int, token: str, now: float) -> None:
        """Delete the votes of an assignment, which is shown again under another token."""
        self._connection.execute(delete(_VOTES).where(_VOTES.c.assignment == assignment))
        self.change(assignment, answered=None, shown=now, token=token)

    def remove(self, assignments: Sequence[int]) -> None:
        """Remove assignments without votes."""
        self._connection.execute(delete(_ASSIGNMENTS).where(_ASSIGNMENTS.c.id.in_(assignments)))


class Store:
    """Read and write the database of a study."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.info, self.secret = _read_study(database)

    @classmethod
    def serving(cls, db: str, info: StudyInfo) -> "Store":
        """Open the database of a study for its one server; make it where there is none.

        Raises UserError where it holds another study, or another server uses it.
        """
        database = Database.open(db, serving=True)
        try:
            with database.transaction() as connection:
                tables = inspect(connection).get_table_names()
                if tables and _STUDY.name not in tables:
                    raise UserError(f"{database.name} holds something else than a study: give another --db")
                if not tables:
                    _META.create_all(connection)
                    secret = secrets.token_urlsafe(32)
                    connection.execute(insert(_STUDY).values(version=VERSION, info=info.to_json(), secret=secret))
            store = cls(database)
            info.refuse_other(store.info, database.name)
        except BaseException:
            database.close()
            raise
        return store

    @contextmanager
    def writing(self) -> Iterator[Writing]:
        """Yield what writes; it is committed, and on the disk, when the block ends, or not at all after an error."""
        with self.database.transaction() as connection:
            yield Writing(connection)

    def raters(self) -> list[Rater]:
        """Read the raters."""
        return [Rater(**row._mapping) for row in self._rows(select(_RATERS).order_by(_RATERS.c.id))]

    def assignments(self) -> list[Assignment]:
        """Read the assignments."""
        return [Assignment(**cast(Any, row._mapping)) for row in self._rows(select(_ASSIGNMENTS).order_by(_ASSIGNMENTS.c.id))]

    def overall(self) -> dict[int, Answer]:
        """Read the overall answers by assignment."""
        statement = select(_VOTES.c.assignment, _VOTES.c.answer).where(_VOTES.c.question == OVERALL)
        return {row.assignment: row.answer for row in self._rows(statement)}

    def votes(self) -> list[Vote]:
        """Read the votes in the order in which they were given."""
        joined = _VOTES.join(_ASSIGNMENTS).join(_RATERS)
        columns = (_RATERS.c.name, _ASSIGNMENTS, _VOTES.c.question, _VOTES.c.answer)
        order = (_ASSIGNMENTS.c.answered, _ASSIGNMENTS.c.id, _VOTES.c.question)
        pairs = self.info.pairs()
        return [self._vote(row, pairs[row.pair]) for row in self._rows(select(*columns).select_from(joined).order_by(*order))]

    def _vote(self, row: Any, pair: Any) -> Vote:
        first = self.info.models[pair.first]
        second = DEGRADED if row.purpose == "obvious" else self.info.models[pair.second]
        left, right = (second, first) if row.swapped else (first, second)
        seconds = max(0.0, row.answered - row.shown)
        return Vote(row.name, pair.prompt, pair.seed, left, right, row.question, row.answer, row.purpose, seconds)

    def _rows(self, statement: Any) -> Sequence[Row[Any]]:
        with self.database.transaction() as connection:
            return connection.execute(statement).all()

    def close(self) -> None:
        """Close the database, and give it free."""
        self.database.close()


def _read_study(database: Database) -> tuple[StudyInfo, str]:
    """Read the study and the secret that signs its links and sessions.  Raises UserError where the database holds none."""
    try:
        with database.transaction() as connection:
            row = connection.execute(select(_STUDY)).one_or_none()
    except DBAPIError as error:
        raise UserError(f"{database.name} holds no study: begin one with neighbor-grpo arena serve") from error
    if row is None:
        raise UserError(f"{database.name} holds no study: begin one with neighbor-grpo arena serve")
    if row.version != VERSION:
        raise UserError(
            f"{database.name} has version {row.version}, and this release reads {VERSION}: use the one that wrote it"
        )
    return StudyInfo.from_json(row.info), row.secret


@contextmanager
def opened(db: str) -> Iterator[Store]:
    """Open the database of a study to read it, also while a server uses it.  Raises UserError where there is none."""
    database = Database.open(db, serving=False)
    try:
        yield Store(database)
    finally:
        database.close()


def read_votes(db: str) -> tuple[StudyInfo, list[Vote]]:
    """Read a study and its votes from its database, also while a server uses it.  Raises UserError where there is none."""
    with opened(db) as store:
        return store.info, store.votes()
