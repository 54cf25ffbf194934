"""A stand-in of the hub on the loopback interface: repositories are directories, and each may be refused as the hub does."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants

COMMIT = hashlib.sha1(b"main").hexdigest()
REFUSALS = {  # what the hub answers: status, code of the error
    "gated": (403, "GatedRepo"),
    "private": (401, "RepoNotFound"),
    "unknown": (404, "RepoNotFound"),
    "disabled": (403, None),
    "failing": (500, None),
    "token": (401, None),
}


class Hub(ThreadingHTTPServer):
    """Serve `repos`, {name: directory}; `asked` holds the paths of the files that were downloaded."""

    def __init__(self, repos: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repos, self.refused, self.asked = repos, {}, []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    """Answer the requests of huggingface_hub's snapshot_download."""

    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        api = path.startswith("api/models/")
        owner, name, *rest = path.removeprefix("api/models/").split("/")
        repo = f"{owner}/{name}"
        place = self.server.repos.get(repo)
        refusal = self.server.refused.get(repo, None if place else "unknown")
        if refusal and not (refusal == "gated" and api):  # what is in a gated repository is public
            return self.refuse(*REFUSALS[refusal])
        assert place
        files = {file.relative_to(place).as_posix(): file for file in sorted(place.rglob("*")) if file.is_file()}
        if api and rest[0] == "revision" and rest[1] not in ("main", "v1", COMMIT):
            return self.refuse(404, "RevisionNotFound")
        if api and rest[0] == "revision":
            return self.say({"id": repo, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]})
        if api and rest[0] == "tree":
            tree = [
                {"type": "file", "path": path, "size": file.stat().st_size, "oid": hashlib.sha1(path.encode()).hexdigest()}
                for path, file in files.items()
            ]
            return self.say(tree)
        file = files["/".join(rest[2:])]  # resolve/COMMIT/...
        headers = {"ETag": f'"{hashlib.sha1("/".join(rest[2:]).encode()).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if self.command == "GET":
            self.server.asked.append("/".join(rest[2:]))
        self.say(file.read_bytes(), **headers)

    def say(self, body: object, status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def refuse(self, status: int, code: str | None) -> None:
        text = {401: "Invalid username or password.", 403: "Access to this resource is disabled."}.get(status, "error")
        headers = {"X-Error-Message": text} | ({"X-Error-Code": code} if code else {})
        self.say({"error": text}, status, **headers)


@contextmanager
def serving(monkeypatch, cache: Path, repos: dict[str, Path]) -> Iterator[Hub]:
    """Serve repositories for a while, to a huggingface_hub that has an empty cache."""
    hub = Hub(repos)
    thread = Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
