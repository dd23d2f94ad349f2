"""A server that answers an upload as the hub does, by its HTTP interface; it keeps what it is sent."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "hf_of_a_test"


class HubServer(ThreadingHTTPServer):
    """Repositories by name, and every file of each; large ones (safetensors) arrive as LFS objects."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, dict[str, Any]] = {}
        self.objects: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.messages: list[str] = []

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON for what is posted to a path."""
        if path == "/api/repos/create":
            told = json.loads(body)
            name = f"{told['organization']}/{told['name']}"
            known = name in self.repositories
            self.repositories.setdefault(name, told)
            return (409 if known else 200), {"url": f"{self.url}/{name}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {
                "transfer": "basic",
                "objects": [self._upload_of(held) for held in json.loads(body)["objects"]],
            }
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            return 200, {"files": [{"path": n, "uploadMode": _mode(n), "shouldIgnore": False} for n in names]}
        if "/commit/" in path:
            self._commit([json.loads(line) for line in body.splitlines()])
            return 200, {"commitUrl": f"{self.url}/org/name/commit/{'0' * 40}", "commitOid": "0" * 40}
        return 404, {"error": f"no such place: {path}"}

    def _upload_of(self, held: dict[str, Any]) -> dict[str, Any]:
        return held | {"actions": {"upload": {"href": f"{self.url}/objects/{held['oid']}"}}}

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            else:
                self.files[value["path"]] = self.objects[value["oid"]]


def _mode(name: str) -> str:
    return "lfs" if name.endswith(".safetensors") else "regular"


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def do_POST(self) -> None:
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status, told = self.server.answer(self.path, body) if allowed else (401, {"error": "Invalid credentials"})
        self._send(status, told)

    def do_GET(self) -> None:
        self._send(401, {"error": "Invalid credentials"})

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        oid = hashlib.sha256(data).hexdigest()
        self.server.objects[oid] = data
        self._send(200 if self.path.endswith(oid) else 400, {})

    def _send(self, status: int, told: Any) -> None:
        data = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing: a test's output is its own."""


@contextmanager
def serving() -> Iterator[HubServer]:
    """A hub that is there inside of the `with`."""
    server = HubServer()
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
