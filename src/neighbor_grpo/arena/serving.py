"""The process that serves a study: it listens, says under which address, and stops at SIGINT or SIGTERM."""

from collections.abc import Callable

from neighbor_grpo.arena.guard import Address
from neighbor_grpo.arena.rating import Rating, Rules
from neighbor_grpo.arena.server import Server
from neighbor_grpo.arena.store import Store
from neighbor_grpo.arena.study import Study
from neighbor_grpo.files.listening import listen, url_of
from neighbor_grpo.run.serving import run


def serve(study: Study, db: str, rules: Rules, address: Address, port: int, say: Callable[[str], None]) -> None:
    """Serve a study until SIGINT or SIGTERM; port 0 chooses a free port.

    say: prints the address for raters.  Raises UserError where the database holds another study or is in use, or where the
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
        url = address.url or url_of(address.host, listening)
        say(f"{url}/?key={server.seal.key}" if address.exposed else f"{url}/")
        run(server.app(), listening)
        server.worker.stop()  # votes under way are stored
    finally:
        store.close()
