"""A server for the tests that speaks what obstore uses of the XML interface of Google Cloud Storage."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from remote_parts import answering


@dataclass
class Storage:
    """One bucket named `bucket`. objects: the bytes and the generation of each, by key; parts: of uploads that are not
    complete; before: called with the method and the key of every request."""

    url: str = ""
    objects: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    generation: int = 0
    before: Callable[[str, str], None] = lambda method, key: None
    lock: threading.RLock = field(default_factory=threading.RLock)

    def keep(self, key: str, content: bytes) -> None:
        """Keep an object."""
        self.generation += 1
        self.objects[key] = content, self.generation


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _about(self, key: str) -> dict[str, str]:
        content, generation = self.server.storage.objects[key]
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        return {"ETag": tag, "x_goog_generation": str(generation), "Last_Modified": formatdate(usegmt=True)}

    def _handle(self) -> None:
        storage: Storage = self.server.storage
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(asked.query, keep_blank_values=True).items()}
        bucket, _, key = unquote(asked.path).lstrip("/").partition("/")
        storage.before(self.command, key)
        with storage.lock:
            if bucket != "bucket":
                self._answer(404, b"<Error><Code>NoSuchBucket</Code></Error>")
            elif not key:
                self._answer(200, self._listing(query.get("prefix", "")))
            elif self.command in ("GET", "HEAD"):
                self._read(key)
            elif self.command == "DELETE":
                self._answer(204 if storage.objects.pop(key, None) else 404)
            else:
                self._write(key, query, body)

    def do_GET(self) -> None:
        self._handle()

    def do_HEAD(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_DELETE(self) -> None:
        self._handle()

    def _listing(self, prefix: str) -> bytes:
        def one(key: str, content: bytes) -> str:
            name, size = f"<Key>{escape(key)}</Key>", f"<Size>{len(content)}</Size>"
            return f"<Contents>{name}{size}<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"

        held = {key: content for key, (content, _) in self.server.storage.objects.items() if key.startswith(prefix)}
        inner = "".join(one(key, held[key]) for key in sorted(held))
        return f"<ListBucketResult>{inner}</ListBucketResult>".encode()

    def _read(self, key: str) -> None:
        if key not in self.server.storage.objects:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        content, about = self.server.storage.objects[key][0], self._about(key)
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if match is None:
            self._answer(200, content, **about)
            return
        first, last = int(match[1]), min(int(match[2]), len(content) - 1)
        about["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
        self._answer(206, content[first : last + 1], **about)

    def _write(self, key: str, query: dict[str, str], body: bytes) -> None:
        storage: Storage = self.server.storage
        wanted = self.headers.get("x-goog-if-generation-match")
        held = storage.objects.get(key, (b"", 0))[1]
        if wanted is not None and int(wanted) != held:
            self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        elif "uploads" in query:
            upload = str(len(storage.parts) + 1)
            storage.parts[upload] = {}
            made = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            self._answer(200, made.encode())
        elif "partNumber" in query:
            storage.parts[query["uploadId"]][int(query["partNumber"])] = body
            self._answer(200, ETag=f'"{hashlib.md5(body).hexdigest()}"')
        elif "uploadId" in query:
            parts = storage.parts.pop(query["uploadId"])
            named = [int(number) for number in re.findall(rb"PartNumber>(\d+)<", body)]
            assert named == sorted(parts)
            storage.keep(key, b"".join(parts[number] for number in named))
            tag = escape(self._about(key)["ETag"])
            done = f"<CompleteMultipartUploadResult><ETag>{tag}</ETag></CompleteMultipartUploadResult>"
            self._answer(200, done.encode(), **self._about(key))
        else:
            source = unquote(self.headers.get("x-goog-copy-source", "")).partition("/")[2]
            storage.keep(key, storage.objects[source][0] if source else body)
            self._answer(200, b"", **self._about(key))


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def storage_server() -> Iterator[Storage]:
    """A server on loopback."""
    server, storage = _Server(("127.0.0.1", 0), _Handler), Storage()
    server.storage = storage  # type: ignore[attr-defined]
    with answering(server) as storage.url:
        yield storage
