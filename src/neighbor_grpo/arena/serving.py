"""The process that serves a study: it listens, says under which address, and stops at SIGINT or SIGTERM."""

import signal
import socket
from collections.abc import Callable
from contextlib import suppress

import uvicorn

from neighbor_grpo.arena.guard import Address
from neighbor_grpo.arena.rating import Rating, Rules
from neighbor_grpo.arena.server import Server
from neighbor_grpo.arena.store import Store
from neighbor_grpo.arena.study import Study
from neighbor_grpo.errors import UserError

_CONNECTIONS = 4096  # at once; others get 503


def serve(study: Study, db: str, rules: Rules, address: Address, port: int, say: Callable[[str], None]) -> None:
    """Serve a study until SIGINT or SIGTERM; port 0 chooses a free port.

    say: is told the address for raters.  Raises UserError where the database holds another study or is in use, or where the
    address cannot be used.
    """
    listening = listen(address.host, port)
    try:
        store = Store.serving(db, study.info)
    except BaseException:
        listening.close()
        raise
    try:
        server = Server(Rating(store, rules), study, address)
        host = f"[{address.host}]" if ":" in address.host else address.host
        url = address.url or f"http://{host}:{listening.getsockname()[1]}"
        say(f"{url}/?key={server.seal.key}" if address.exposed else f"{url}/")
        _run(server, listening)
        server.worker.stop()  # votes under way are stored
    finally:
        store.close()


def _run(server: Server, listening: socket.socket) -> None:
    config = uvicorn.Config(
        server.app(),
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=2,
    )
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # before and after uvicorn, which has its own
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run([listening])
    signal.signal(signal.SIGTERM, before)


def listen(host: str, port: int) -> socket.socket:
    """Open a socket.  Raises UserError if the address cannot be used."""
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048)
    except (OSError, ValueError, OverflowError) as error:  # ValueError: a name that cannot be one
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen on {host}:{port} ({reason}): choose another --host or --port") from error
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or the second part of a reply may wait for 40 ms
    return listening
