"""A stand-in for the Hugging Face hub on loopback: as much as its own client asks for to make, fill and read repositories."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40
TOKEN = "hf_" + "secret" * 5


class Hub(ThreadingHTTPServer):
    """Repositories by name, and the tokens that requests came with."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.tokens: set[str | None] = set()

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        self.server.tokens.add(self.headers.get("Authorization"))
        body = (
            self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Length")
            else self._chunks()
        )
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json({"error": "Invalid username or password."}, 401)
            return
        path = urlsplit(self.path).path
        if path == "/api/repos/create":
            request = json.loads(body)
            name = f"{request['organization']}/{request['name']}" if request.get("organization") else request["name"]
            self.server.repos.setdefault(name, {})
            self._json({"url": f"{self.server.address}/{name}", "id": name})
        elif "/preupload/" in path:
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self._json({"files": files, "commitOid": COMMIT})
        elif "/commit/" in path:
            files = self.server.repos[_repo(path)]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._json({"commitUrl": f"{self.server.address}/{_repo(path)}/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self._json({}, 200)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/models/"):
            repo = _repo(path)
            if repo not in self.server.repos:
                self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            elif "/tree/" in path:
                files = self.server.repos[repo].items()
                self._json(
                    [{"type": "file", "path": name, "size": len(data), "oid": _etag(data)} for name, data in files]
                )
            else:
                names = [{"rfilename": name} for name in self.server.repos[repo]]
                self._json({"id": repo, "sha": COMMIT, "siblings": names, "private": False, "tags": [], "downloads": 0})
            return
        repo, _, name = path.removeprefix("/").partition("/resolve/")
        data = self.server.repos.get(repo, {}).get(name.partition("/")[2])
        if data is None:
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        self._send(data, 200, {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def _chunks(self) -> bytes:
        parts: list[bytes] = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _repo(path: str) -> str:
    return "/".join(path.split("/")[3:5])


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextmanager
def hub() -> Generator[Hub]:
    """A hub that runs as long as the block."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
