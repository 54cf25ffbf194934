"""A PostgreSQL server of its own in a temporary folder, from Debian's package."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def programs() -> Path | None:
    """Return the folder of initdb and postgres; None where they are missing."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    found += [Path(initdb).resolve().parent] if (initdb := shutil.which("initdb")) else []
    return max(found, default=None)


@contextmanager
def postgres() -> Iterator[str]:
    """Start a server on the loopback interface, and yield its URL."""
    folder = programs()
    assert folder, "needs PostgreSQL: apt-get install postgresql"
    user = "nobody" if os.getuid() == 0 else None  # it refuses to run as root
    with tempfile.TemporaryDirectory(prefix="postgres-") as place, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        if user:
            os.chown(place, pwd.getpwnam(user).pw_uid, -1)
        data = Path(place) / "data"
        initdb = [folder / "initdb", "-D", data, "-U", "arena", "--auth=trust", "--no-sync", "--locale=C", "--encoding=UTF8"]
        subprocess.run(initdb, check=True, capture_output=True, user=user, cwd=place)
        options = ["-D", data, "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-k", place]
        with (Path(place) / "log").open("w") as log:
            server = subprocess.Popen([folder / "postgres", *options], stdout=log, stderr=log, user=user, cwd=place)
        try:
            ready = [folder / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
            until = time.monotonic() + 60
            while subprocess.run(ready).returncode:
                assert server.poll() is None and time.monotonic() < until, (Path(place) / "log").read_text()
                time.sleep(0.1)
            yield f"postgresql://arena@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGQUIT)  # at once: nobody needs its data
            server.wait(30)
