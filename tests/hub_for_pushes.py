"""A stand-in for the hub on the loopback interface: users, repositories, and the commits that are sent to them."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """What the hub knows, and what was asked of it."""

    def __init__(self) -> None:
        self.address = ""
        self.user = {
            "name": "me",
            "orgs": [{"name": "us"}],
            "auth": {"accessToken": {"role": "write"}},
        }
        self.private: dict[str, bool] = {}  # repository -> whether it is private
        self.files: dict[str, dict[str, bytes]] = {}
        self.fails: dict[str, int] = {}  # beginning of a path -> status
        self.asked: list[str] = []

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, object]:
        path = path.partition("?")[0]
        self.asked.append(f"{method} {path}")
        if status := next((status for start, status in self.fails.items() if path.startswith(start)), None):
            return status, {"error": "no"}
        if path == "/api/whoami-v2":
            return 200, self.user
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            exists = repo in self.private
            self.private.setdefault(repo, asked.get("visibility") == "private" or asked.get("private") is True)
            return (409 if exists else 200), {"url": f"{self.address}/{repo}", "error": "you already created this model repo"}
        _, _, kind, owner, name, *rest = path.split("/")
        repo = f"{owner}/{name}"
        if kind != "models" or repo not in self.private:
            return 404, {"error": "Repository not found"}
        if not rest:
            return 200, {"id": repo, "private": self.private[repo], "siblings": []}
        if rest[0] == "preupload":
            files = json.loads(body)["files"]
            return 200, {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]}
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.files.setdefault(repo, {})[entry["value"]["path"]] = content
        return 200, {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.address}/{repo}/commit/{'0' * 40}"}


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """Serve the hub; yield its address, which it then knows."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, said = hub.answer(self.command, self.path, body)
            content = json.dumps(said).encode()
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        yield hub.address
    finally:
        server.shutdown()
        server.server_close()
