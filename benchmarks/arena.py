"""Rate a study with many raters at once, and kill its server under load.

    python benchmarks/arena.py load --raters 200 --votes 50 --think 2
    python benchmarks/arena.py kills --kills 50 --db sqlite
    python benchmarks/arena.py kills --kills 50 --db postgres

Raters are coroutines of one process, the server is another process; both share the machine.  A rater joins, loads both pictures
of a pair, thinks for 0 to twice `think` seconds, votes, and sends a vote again until it gets a reply.  `load` prints the time
from sending a vote to its reply, checks that the database holds every vote once, and by how much the pairs' counts differ.
`kills` ends the server by SIGKILL at random moments, starts it again, and checks that the database holds every vote that was
acknowledged, with the answer that was sent.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import re
import signal
import socket
import ssl
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from postgres import postgres
from studies import study_of

from neighbor_grpo.arena.guard import Address
from neighbor_grpo.arena.rating import Rules
from neighbor_grpo.arena.serving import serve
from neighbor_grpo.arena.signing import Seal
from neighbor_grpo.arena.store import opened
from neighbor_grpo.arena.study import Study
from neighbor_grpo.arena.votes import Answer

PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # without TLS: loading certificates for each client is slow
ANSWERS: tuple[Answer, ...] = ("left", "right", "tie", "bad")


@dataclass
class Seen:
    """Hold what raters saw."""

    seconds: list[float] = field(default_factory=list)  # of each vote
    acknowledged: dict[str, Answer] = field(default_factory=dict)  # by assignment
    retries: int = 0


class Running:
    """Hold a server process that can be killed and started again."""

    def __init__(self, study: Study, db: str, rules: Rules) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._arguments = (study, db, rules, Address("127.0.0.1"), self.port, lambda text: None)
        self.start()

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        self.process = multiprocessing.get_context("fork").Process(target=serve, args=self._arguments)
        self.process.start()
        while True:
            try:
                httpx.get(self.url, verify=PLAIN)
                return
            except httpx.TransportError:
                assert self.process.is_alive()
                time.sleep(0.02)

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End the server."""
        assert self.process.pid
        os.kill(self.process.pid, how)
        self.process.join()

    @property
    def url(self) -> str:
        """Return its address."""
        return f"http://127.0.0.1:{self.port}"


async def patient(client: httpx.AsyncClient, seen: Seen, method: str, path: str, **options: object) -> httpx.Response:
    """Ask until there is a reply."""
    while True:
        try:
            reply = await client.request(method, path, **options)  # type: ignore[arg-type]
            if reply.status_code < 500:
                return reply
        except httpx.TransportError:
            pass
        seen.retries += 1
        await asyncio.sleep(0.1)


async def rate(url: str, invitation: str, think: float, seen: Seen, rng: random.Random) -> None:
    """Be a rater from joining to the end."""
    limits = httpx.Limits(max_connections=2)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits, headers={"origin": url}, verify=PLAIN) as client:
        await asyncio.sleep(rng.random() * think)
        await patient(client, seen, "POST", "/join", data={"invitation": invitation})
        page = (await patient(client, seen, "GET", "/")).text
        csrf = re.search(r'data-csrf="([^"]+)"', page)
        assert csrf, page
        turn = (await patient(client, seen, "GET", "/pair")).json()
        while turn["token"]:
            for side in ("left", "right"):
                await patient(client, seen, "GET", f"/picture/{turn[side]}")
            await asyncio.sleep(2 * think * rng.random())
            token, answer = turn["token"], rng.choice(ANSWERS)
            body = {"assignment": token, "answers": {"overall": answer}}
            start = time.perf_counter()
            reply = await patient(client, seen, "POST", "/vote", json=body, headers={"x-csrf": csrf[1]})
            seen.seconds.append(time.perf_counter() - start)
            assert reply.status_code == 200, reply.text
            turn = reply.json()
            assert not turn["lost"]
            seen.acknowledged[token] = answer


def invitations(db: str, raters: int) -> list[str]:
    """Invite raters."""
    with opened(db) as store:
        seal = Seal(store.secret)
    return [seal.invitation(f"rater {n}", time.time() + 3600) for n in range(raters)]


def stored(db: str) -> tuple[Counter[str], dict[str, Answer], list[int]]:
    """Return how often each assignment has a vote, its answer, and how often each pair was given."""
    with opened(db) as store:
        rows, answers, pairs = store.assignments(), store.overall(), len(store.info.pairs())
        votes = len(store.votes())
    tokens = {row.id: str(row.token) for row in rows}
    assert votes == len(answers)
    given = Counter(row.pair for row in rows if row.purpose == "vote")
    counts = Counter(tokens[n] for n in answers)
    return counts, {tokens[n]: answer for n, answer in answers.items()}, [given[pair] for pair in range(pairs)]


def load(db: str, study: Study, arguments: argparse.Namespace) -> dict[str, object]:
    """Let many raters vote at once."""
    server = Running(study, db, Rules(votes=arguments.votes, repeat=0))
    seen, links = Seen(), invitations(db, arguments.raters)

    async def all_raters() -> None:
        await asyncio.gather(*(rate(server.url, link, arguments.think, seen, random.Random(n)) for n, link in enumerate(links)))

    start = time.perf_counter()
    asyncio.run(all_raters())
    took = time.perf_counter() - start
    server.kill(signal.SIGTERM)
    counts, answers, given = stored(db)
    assert answers == seen.acknowledged and set(counts.values()) == {1}
    cuts = statistics.quantiles(seen.seconds, n=100)
    return {
        "votes": len(answers),
        "wanted": arguments.raters * arguments.votes,
        "votes a second": round(len(answers) / took, 1),
        "ms": {"median": round(1000 * cuts[49]), "p95": round(1000 * cuts[94]), "p99": round(1000 * cuts[98])},
        "imbalance": max(given) - min(given),
    }


def kills(db: str, study: Study, arguments: argparse.Namespace) -> dict[str, object]:
    """Kill the server again and again while raters vote."""
    server = Running(study, db, Rules(votes=arguments.votes, repeat=0))
    seen, links, rng = Seen(), invitations(db, arguments.raters), random.Random(0)
    killed: list[int] = []  # votes acknowledged at each kill

    async def killing(voting: "asyncio.Future[object]") -> None:
        while len(killed) < arguments.kills:
            wanted = len(seen.acknowledged) + rng.randint(1, 20)
            while len(seen.acknowledged) < wanted and not voting.done():
                await asyncio.sleep(0.002)
            await asyncio.sleep(rng.uniform(0, 0.05))
            await asyncio.to_thread(server.kill)
            killed.append(len(seen.acknowledged))
            _, answers, _ = stored(db)
            assert seen.acknowledged.items() <= answers.items()
            await asyncio.to_thread(server.start)

    async def everything() -> None:
        raters = [rate(server.url, link, arguments.think, seen, random.Random(n)) for n, link in enumerate(links)]
        voting = asyncio.gather(*raters)
        await asyncio.wait({asyncio.ensure_future(killing(voting)), voting}, return_when=asyncio.FIRST_COMPLETED)
        await voting

    asyncio.run(everything())
    server.kill(signal.SIGTERM)
    counts, answers, given = stored(db)
    assert answers == seen.acknowledged and set(counts.values()) == {1}
    return {
        "kills": len(killed),
        "of them between votes": len(set(killed)),
        "votes": len(answers),
        "wanted": arguments.raters * arguments.votes,
        "requests sent again": seen.retries,
        "imbalance": max(given) - min(given),
    }


@contextmanager
def database(kind: str, place: str) -> Iterator[str]:
    """Yield a file or a URL."""
    with postgres() if kind == "postgres" else nullcontext(f"{place}/votes.db") as db:
        yield db


def main() -> None:
    """Measure, and print figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("load", "kills"))
    parser.add_argument("--db", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--raters", type=int, default=200)
    parser.add_argument("--votes", type=int, default=50)
    parser.add_argument("--think", type=float, default=2.0, help="mean seconds from a pair to its vote")
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--kills", type=int, default=50)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, database(arguments.db, place) as db:
        study = study_of(Path(place), prompts=arguments.prompts)
        figures = (load if arguments.what == "load" else kills)(db, study, arguments)
    kept = {key: value for key, value in vars(arguments).items() if key != "kills" or arguments.what == "kills"}
    print(json.dumps({**kept, **figures, "load of the machine": os.getloadavg()}))


if __name__ == "__main__":
    main()
