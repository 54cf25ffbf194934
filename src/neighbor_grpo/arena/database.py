"""A connection to SQLite (a file) or PostgreSQL (a URL) that belongs to one server at a time.

SQLite keeps a write-ahead log and waits at every commit until the disk has it, as PostgreSQL does by default: what was
committed survives a kill and a power failure.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import NullPool

from neighbor_grpo.errors import UserError, printable
from neighbor_grpo.files.lock import Lock

_KEY = 0x6E67_6172_656E_61  # of PostgreSQL's advisory lock, one for each database
_WAIT = 3.0  # seconds in which PostgreSQL notices that the last server was killed


class Database:
    """Hold one connection, and for a server the lock.  One thread uses it at a time."""

    def __init__(self, name: str, engine: Engine, lock: Lock | None, locking: bool) -> None:
        self.name, self._engine, self._lock, self._locking = name, engine, lock, locking
        self._connection: Connection | None = None

    @classmethod
    def open(cls, db: str, serving: bool) -> "Database":
        """Open a file, or a database by its URL.

        serving: make the file where there is none, and take the lock.  Raises UserError where another server has it, where
        there is nothing to read, or where the database cannot be used.
        """
        url = _url(db)
        lock = None
        if url.get_backend_name() == "sqlite":
            file = Path(str(url.database))
            _check_file(file, serving)
            lock = Lock.take(file) if serving else None
        name = url.render_as_string(hide_password=True) if "://" in db else db
        database = cls(name, _engine(url, serving), lock, serving and lock is None)
        try:
            with database.transaction():
                pass
        except DBAPIError as error:
            database.close()
            raise UserError(
                f"cannot use the database {name}: {_reason(error)}; check the address, or give another --db"
            ) from error
        except BaseException:
            database.close()
            raise
        return database

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Yield a connection whose changes are committed at the end, or undone after an error; connect again if it was lost."""
        if self._connection is None:
            self._connection = self._connect()
        try:
            with self._connection.begin():
                yield self._connection
        except DBAPIError:
            self._disconnect()  # whatever state it is in, the next transaction begins anew
            raise

    def _connect(self) -> Connection:
        connection = self._engine.connect()
        if self._locking:
            until = monotonic() + _WAIT
            while not connection.execute(text(f"SELECT pg_try_advisory_lock({_KEY})")).scalar():
                if monotonic() > until:
                    connection.close()
                    raise UserError(f"{self.name} is in use by another server: stop it, or give another --db")
                sleep(0.1)
            connection.commit()
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        """Close the connection and give the database free."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._engine.dispose()
        if self._lock is not None:
            self._lock.release()


def _url(db: str) -> URL:
    """Return the URL of a file, or of a database by URL."""
    if "://" not in db:
        return URL.create("sqlite", database=db)
    try:
        url = make_url(db)
    except ArgumentError as error:
        raise UserError("--db is not a URL: write postgresql://USER:PASSWORD@HOST/DATABASE") from error
    if url.get_backend_name() != "postgresql":
        raise UserError(f"--db {url.drivername}: give a file for SQLite, or postgresql://USER:PASSWORD@HOST/DATABASE")
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise UserError("PostgreSQL needs the package psycopg: pip install 'neighbor-grpo[postgres]'") from None
    return url.set(drivername="postgresql+psycopg")


def _check_file(file: Path, serving: bool) -> None:
    """Raise UserError where a file cannot be a database."""
    if not serving and not file.is_file():
        raise UserError(f"no database {file}: give the --db of neighbor-grpo arena serve")
    if not file.absolute().parent.is_dir():
        raise UserError(f"no folder {file.parent}: make it, or give another --db")
    if file.is_dir():
        raise UserError(f"--db {file} is a folder: give a file")
    if not os.access(file if file.exists() else file.absolute().parent, os.W_OK if serving else os.R_OK):
        raise UserError(f"{file} cannot be {'written' if serving else 'read'}: change its permissions, or give another --db")


def _engine(url: URL, serving: bool) -> Engine:
    if url.get_backend_name() != "sqlite":
        return create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": 10})
    # the file as a URI: the name as it is, and no file is made by reading
    uri = f"{Path(str(url.database)).absolute().as_uri()}?mode={'rwc' if serving else 'ro'}"
    address = URL.create("sqlite", database=uri, query={"uri": "true"})
    engine = create_engine(address, poolclass=NullPool, connect_args={"check_same_thread": False})

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: object) -> None:
        wanted = "PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 5000; PRAGMA synchronous = FULL"
        for statement in wanted.split("; "):
            connection.execute(statement)
        if serving and connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise UserError(
                f"{url.database} is on a file system without shared memory: put it on a local disk, or use PostgreSQL"
            )

    return engine


def _reason(error: DBAPIError) -> str:
    """Return the first line of what the database says."""
    return printable(str(error.orig).strip().splitlines()[0]) if str(error.orig).strip() else type(error.orig).__name__
