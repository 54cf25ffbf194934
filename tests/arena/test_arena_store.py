"""The database of a study: what was committed stays, one server at a time; SQLite, and PostgreSQL where it is installed."""

import multiprocessing
import os
import signal
import sqlite3

import pytest
from postgres import postgres, programs
from studies import info_of

from neighbor_grpo.arena import database
from neighbor_grpo.arena.rating import Rating, Rules
from neighbor_grpo.arena.store import Store, opened, read_votes
from neighbor_grpo.errors import UserError


@pytest.fixture(scope="module")
def server():
    if programs() is None:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'neighbor-grpo[postgres]'")
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def db(request, tmp_path):
    """Return the file or the URL of a new database."""
    if request.param == "sqlite":
        return str(tmp_path / "votes ?#%.db")
    import psycopg

    url = request.getfixturevalue("server")
    name = f"d{os.urandom(6).hex()}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return url.replace("/postgres", f"/{name}")


def vote(store, count, name="Ada"):
    rating = Rating(store, Rules(repeat=0))
    rater = rating.join(name, 0, invited=True).id
    turn = rating.turn(rater, 0)
    for _ in range(count):
        turn = rating.answer(rater, turn.token, {"overall": "left"}, 1)


def test_votes_stay(db):
    store = Store.serving(db, info_of())
    vote(store, 3)
    assert read_votes(db) == (store.info, store.votes()) and len(store.votes()) == 3  # while it is served
    secret = store.secret
    store.close()
    again = Store.serving(db, info_of())
    assert again.secret == secret and len(again.votes()) == 3
    again.close()


def test_one_server_at_a_time(db, monkeypatch):
    monkeypatch.setattr(database, "_WAIT", 0.2)
    store = Store.serving(db, info_of())
    with pytest.raises(UserError, match="in use by"):
        Store.serving(db, info_of())
    vote(store, 1)
    store.close()
    Store.serving(db, info_of()).close()


def test_another_study_is_refused(db):
    Store.serving(db, info_of()).close()
    with pytest.raises(UserError, match=r"another study.*prompts"):
        Store.serving(db, info_of(prompts=5))
    Store.serving(db, info_of()).close()  # what was refused holds no lock


def vote_for_ever(db, pipe):
    store = Store.serving(db, info_of(prompts=2000))
    rating = Rating(store, Rules(votes=2000, repeat=0))
    rater = rating.join("Ada", 0, invited=True).id
    turn = rating.turn(rater, 0)
    while True:
        token = turn.token
        turn = rating.answer(rater, token, {"overall": "left"}, 1)
        pipe.send(token)


def test_a_kill_loses_no_vote(db):
    acknowledged = set()
    for _ in range(3):
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(target=vote_for_ever, args=(db, theirs))
        process.start()
        theirs.close()
        for _ in range(5):
            acknowledged.add(ours.recv())
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        try:
            while True:
                acknowledged.add(ours.recv())
        except (EOFError, OSError):
            pass
        with opened(db) as store:
            stored = {row.token for row in store.assignments() if row.answered}
            assert acknowledged <= stored and len(stored) == len(store.votes()) <= len(acknowledged) + 3


def test_an_error_while_voting_changes_nothing(db, monkeypatch):
    store = Store.serving(db, info_of())
    rating = Rating(store, Rules(repeat=0))
    rater = rating.join("Ada", 0).id
    turn = rating.turn(rater, 0)
    with pytest.raises(Exception, match=r"(?i)constraint|too long|value"), rating.transaction() as writing:
        rating.answer(rater, turn.token, {"overall": "left"}, 1)
        writing.add(rater, [{"pair": None, "purpose": "vote", "swapped": False}])
    assert store.votes() == [] and rating.turn(rater, 2).token == turn.token
    assert rating.answer(rater, turn.token, {"overall": "tie"}, 3).done == 1 and store.votes()[0].answer == "tie"
    store.close()


def test_a_lost_connection_is_made_again(server, monkeypatch):
    import psycopg

    monkeypatch.setattr(database, "_WAIT", 0.2)
    url = server
    store = Store.serving(url, info_of())
    rating = Rating(store, Rules(repeat=0))
    rater = rating.join("Ada", 0, invited=True).id
    turn = rating.turn(rater, 0)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    with pytest.raises(Exception, match=r"terminat|closed|connection"):
        rating.answer(rater, turn.token, {"overall": "left"}, 1)
    assert rating.answer(rater, turn.token, {"overall": "left"}, 1).done == turn.done + 1
    with pytest.raises(UserError, match="in use"):
        Store.serving(url, info_of())
    store.close()


def test_sqlite_waits_for_the_disk_and_keeps_a_log(tmp_path):
    store = Store.serving(str(tmp_path / "votes.db"), info_of())
    with store.database.transaction() as connection:
        values = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]
    assert values == ["wal", 2]  # 2: FULL
    vote(store, 2)
    store.close()
    by_hand = sqlite3.connect(tmp_path / "votes.db").execute("SELECT question, answer FROM votes").fetchall()
    assert by_hand == [("overall", "left")] * 2


def refused(db, match, serving=True):
    with pytest.raises(UserError, match=match) as caught:
        Store.serving(str(db), info_of()) if serving else read_votes(str(db))
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_what_is_no_database_of_a_study(tmp_path):
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE x (a)")
    (tmp_path / "text.db").write_text("not a database, but long enough to be taken for one" * 50)
    refused(other, "another --db")
    refused(other, "arena serve", serving=False)
    refused(tmp_path / "text.db", "another --db")
    refused(tmp_path / "none.db", "--db of neighbor-grpo arena serve", serving=False)
    assert not (tmp_path / "none.db").exists()
    refused(tmp_path, "give a file")
    refused(tmp_path / "no" / "votes.db", "no folder")
    refused("mysql://u:secret@h/x", "postgresql://")
    refused("postgresql://u:secret@127.0.0.1:1/x", "cannot use the database")
