"""Servers for the tests: a web server with and without ranges and with faults, and a hub of a few routes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import pytest

COMMIT, OLD = "1" * 40, "0" * 40


@dataclass
class Served:
    """A folder that is served, how, and what was asked. fault: called before each answer with the number of the request
    and the path; what it returns replaces the answer: a status, or bytes to send before the connection is cut."""

    folder: Path
    url: str = ""
    ranges: bool = True
    latency: float = 0.0
    fault: Callable[[int, str], int | bytes | None] = lambda number, path: None
    tags: bool = True
    size: Callable[[int], int] = lambda size: size
    hub: Hub | None = None
    query: str = ""
    """What must stand behind the question mark."""
    coding: str = ""
    """What is said that files are compressed with."""
    chunked: bool = False
    log: list[tuple[str, str]] = field(default_factory=list)
    sent: int = 0
    headers: list[dict[str, str]] = field(default_factory=list)

    def asked_of(self, ending: str) -> list[str]:
        """The ranges that were asked of files by the end of their names."""
        return [asked for path, asked in self.log if path.endswith(ending)]


@dataclass
class Hub:
    """What the hub answers besides files. token: the one that is needed, None where the repository is public."""

    repo: str = "org/model"
    token: str | None = None
    gated: bool = False
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, "v1": OLD})
    redirect: bool = True
    expires: int = 1 << 30
    """Uses of a signed link after which it is refused."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        served = self.server.served
        time.sleep(served.latency)
        path = unquote(urlsplit(self.path).path)
        with self.server.lock:
            served.log.append((path, self.headers.get("Range", "")))
            served.headers.append(dict(self.headers))
            number = len(served.log)
        wrong = served.fault(number, path)
        if isinstance(wrong, int):
            self._plain(wrong, b"")
        elif isinstance(wrong, bytes):
            self.wfile.write(wrong)
            self.close_connection = True
        elif urlsplit(self.path).query != served.query and served.query:
            self._plain(403, b"")
        elif served.hub is not None:
            self._hub(served.hub, path)
        else:
            self._file(served.folder / path.lstrip("/"))

    def _plain(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _file(self, path: Path) -> None:
        served = self.server.served
        if not path.is_file():
            self._plain(404, b"no such file")
            return
        with open(path, "rb") as file:
            size = path.stat().st_size
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            first, last = (int(match[1]), min(int(match[2]), size - 1)) if match and served.ranges else (0, size - 1)
            self.send_response(206 if match and served.ranges else 200)
            if match and served.ranges:
                self.send_header("Content-Range", f"bytes {first}-{last}/{served.size(size)}")
            if served.coding:
                self.send_header("Content-Encoding", served.coding)
            if served.chunked:
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                content = file.read()
                self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content) if content else b"0\r\n\r\n")
                return
            if served.tags:
                self.send_header("ETag", f'"{path.stat().st_mtime_ns:x}"')
            self.send_header("Content-Length", str(last - first + 1))
            self.end_headers()
            file.seek(first)
            left = last - first + 1
            while left:
                block = file.read(min(left, 1 << 20))
                self.wfile.write(block)
                left -= len(block)
                served.sent += len(block)

    def _hub(self, hub: Hub, path: str) -> None:
        token = self.headers.get("Authorization", "")
        if path.startswith("/signed/"):
            assert not token, "the token of the hub was sent to another address"
            self._file(self.server.served.folder / path.split("/", 3)[3])
            return
        if not re.match(rf"/(?:api/models/)?{hub.repo}(?:/|$)", path):
            self._plain(401, b"{}", X_Error_Code="RepoNotFound")
        elif hub.token is not None and token != f"Bearer {hub.token}":
            code = "GatedRepo" if hub.gated else "RepoNotFound"
            self._plain(403 if hub.gated else 401, b"{}", X_Error_Code=code)
        elif match := re.fullmatch(rf"/api/models/{hub.repo}(?:/revision/(.+))?", path):
            commit = self._commit(hub, match[1] or "main")
            if commit is None:
                self._plain(404, b"{}", X_Error_Code="RevisionNotFound")
                return
            self._plain(200, json.dumps({"id": hub.repo, "sha": commit, "siblings": []}).encode())
        elif re.match(rf"/api/models/{hub.repo}/tree/", path):
            self._plain(200, json.dumps(self._tree()).encode())
        elif match := re.fullmatch(rf"/{hub.repo}/resolve/([^/]+)/(.+)", path):
            self._resolved(hub, match[2])
        else:
            self._plain(404, b"{}")

    @staticmethod
    def _commit(hub: Hub, revision: str) -> str | None:
        return revision if revision in hub.revisions.values() else hub.revisions.get(revision)

    def _tree(self) -> list[dict[str, object]]:
        folder, found = self.server.served.folder, list[dict[str, object]]()
        for path in sorted(folder.rglob("*")):
            kind = {"type": "directory", "size": 0} if path.is_dir() else {"type": "file", "size": path.stat().st_size}
            oid = hashlib.sha1(path.name.encode()).hexdigest()
            found.append({"path": str(path.relative_to(folder)), "oid": oid, **kind})
        return found

    def _resolved(self, hub: Hub, name: str) -> None:
        served = self.server.served
        if not (hub.redirect and name.endswith(".safetensors")):
            self._file(served.folder / name)
            return
        link = served.url.replace("127.0.0.1", "localhost")
        self._plain(302, b"", Location=f"{link}/signed/{hub.expires}/{name}")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, served: Served) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.served, self.lock = served, threading.Lock()

    def handle_error(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving(folder: Path, **how: object) -> Iterator[Served]:
    """A web server on loopback that serves a folder."""
    served = Served(folder, **how)  # type: ignore[arg-type]
    with answering(_Server(served)) as served.url:
        yield served


@contextlib.contextmanager
def answering(server: ThreadingHTTPServer) -> Iterator[str]:
    """A server that answers in a thread of its own; its URL."""
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def s3_server() -> Iterator[tuple[Any, str]]:
    """A client of moto's server, and the URL of that. It is empty: all servers of a process have the same buckets."""
    pytest.importorskip("obstore")
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    secret = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    try:
        with urlopen(Request(f"{url}/moto-api/reset", method="POST")):
            pass
        yield boto3.client("s3", endpoint_url=url, **secret), url
    finally:
        server.stop()
