"""Servers for the tests that speak what obstore uses of the interfaces of Google Cloud Storage and of Azure."""

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
    complete, by their names; before: called with the method and the key of every request; refused: the status and the
    code that requests of a method are answered with."""

    url: str = ""
    objects: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    parts: dict[str, dict[str, bytes]] = field(default_factory=dict)
    generation: int = 0
    before: Callable[[str, str], None] = lambda method, key: None
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def keep(self, key: str, content: bytes) -> None:
        """Keep an object."""
        self.generation += 1
        self.objects[key] = content, self.generation


class _Handler(BaseHTTPRequestHandler):
    """What both have in common: objects are read, and errors told, in the same way."""

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

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code></Error>".encode(), x_ms_error_code=code)

    def _about(self, key: str) -> dict[str, str]:
        content, generation = self.server.storage.objects[key]
        tag = f'"{hashlib.md5(content).hexdigest()}-{generation}"'
        return {"ETag": tag, "x_goog_generation": str(generation), "Last_Modified": formatdate(usegmt=True)}

    def _handle(self) -> None:
        storage: Storage = self.server.storage
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(asked.query, keep_blank_values=True).items()}
        bucket, _, key = unquote(asked.path).lstrip("/").partition("/")
        storage.before(self.command, key)
        with storage.lock:
            if self.command in storage.refused:
                self._refuse(*storage.refused[self.command])
            elif bucket != "bucket":
                self._refuse(404, self.no_bucket)
            elif not key:
                self._of_bucket(query, body)
            elif self.command in ("GET", "HEAD"):
                self._read(key)
            elif self.command == "DELETE":
                self._answer(self.deleted if storage.objects.pop(key, None) else 404)
            else:
                self._write(key, query, body)

    no_bucket, deleted = "", 204

    def _of_bucket(self, query: dict[str, str], body: bytes) -> None:
        raise NotImplementedError

    def _write(self, key: str, query: dict[str, str], body: bytes) -> None:
        raise NotImplementedError

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815

    def _listed(self, prefix: str) -> list[tuple[str, int]]:
        """Keys and sizes of the objects below a prefix."""
        held = self.server.storage.objects
        return [(key, len(held[key][0])) for key in sorted(held) if key.startswith(prefix)]

    def _read(self, key: str) -> None:
        if key not in self.server.storage.objects:
            self._refuse(404, "NoSuchKey")
            return
        content, about = self.server.storage.objects[key][0], self._about(key)
        if self.headers.get("If-Match", about["ETag"]) != about["ETag"]:
            self._refuse(412, "ConditionNotMet")
            return
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if match is None:
            self._answer(200, content, **about)
            return
        first, last = int(match[1]), min(int(match[2]), len(content) - 1)
        about["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
        self._answer(206, content[first : last + 1], **about)


class _Google(_Handler):
    """The XML interface of Google Cloud Storage."""

    no_bucket = "NoSuchBucket"

    def _of_bucket(self, query: dict[str, str], body: bytes) -> None:
        def one(key: str, size: int) -> str:
            name = f"<Key>{escape(key)}</Key><Size>{size}</Size>"
            return f"<Contents>{name}<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"

        inner = "".join(one(key, size) for key, size in self._listed(query.get("prefix", "")))
        self._answer(200, f"<ListBucketResult>{inner}</ListBucketResult>".encode())

    def _write(self, key: str, query: dict[str, str], body: bytes) -> None:
        storage: Storage = self.server.storage
        wanted = self.headers.get("x-goog-if-generation-match")
        held = storage.objects.get(key, (b"", 0))[1]
        if wanted is not None and int(wanted) != held:
            self._refuse(412, "PreconditionFailed")
        elif "uploads" in query:
            upload = str(len(storage.parts) + 1)
            storage.parts[upload] = {}
            made = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            self._answer(200, made.encode())
        elif "partNumber" in query:
            storage.parts[query["uploadId"]][query["partNumber"]] = body
            self._answer(200, ETag=f'"{hashlib.md5(body).hexdigest()}"')
        elif "uploadId" in query:
            parts = storage.parts.pop(query["uploadId"])
            named = re.findall(r"PartNumber>(\d+)<", body.decode())
            assert named == sorted(parts, key=int)
            storage.keep(key, b"".join(parts[number] for number in named))
            tag = escape(self._about(key)["ETag"])
            done = f"<CompleteMultipartUploadResult><ETag>{tag}</ETag></CompleteMultipartUploadResult>"
            self._answer(200, done.encode(), **self._about(key))
        else:
            source = unquote(self.headers.get("x-goog-copy-source", "")).partition("/")[2]
            storage.keep(key, storage.objects[source][0] if source else body)
            self._answer(200, b"", **self._about(key))


class _Azure(_Handler):
    """The REST interface of Azure's blobs."""

    no_bucket, deleted = "ContainerNotFound", 202

    def _of_bucket(self, query: dict[str, str], body: bytes) -> None:
        if query.get("comp") == "batch":
            self._delete_many(body)
            return

        def one(key: str, size: int) -> str:
            about = f"<Last-Modified>{formatdate(usegmt=True)}</Last-Modified><Content-Length>{size}</Content-Length>"
            kind = "<Content-Type>application/octet-stream</Content-Type><BlobType>BlockBlob</BlobType>"
            return f"<Blob><Name>{escape(key)}</Name><Properties>{about}{kind}</Properties></Blob>"

        inner = "".join(one(key, size) for key, size in self._listed(query.get("prefix", "")))
        found = f"<EnumerationResults><Blobs>{inner}</Blobs><NextMarker/></EnumerationResults>"
        self._answer(200, found.encode(), Content_Type="application/xml")

    def _delete_many(self, body: bytes) -> None:
        """Several deletions in one request, each a request of its own in the body."""
        answers = []
        for number, path in enumerate(re.findall(r"DELETE (\S+) HTTP", body.decode())):
            key = unquote(urlsplit(path).path).lstrip("/").partition("/")[2]
            status = "202 Accepted" if self.server.storage.objects.pop(key, None) else "404 Not Found"
            head = f"Content-Type: application/http\r\nContent-ID: {number}\r\n\r\n"
            answers.append(f"--one\r\n{head}HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")
        content = "".join([*answers, "--one--\r\n"]).encode()
        self._answer(202, content, Content_Type="multipart/mixed; boundary=one")

    def _write(self, key: str, query: dict[str, str], body: bytes) -> None:
        storage: Storage = self.server.storage
        wanted, there = self.headers.get("If-Match"), key in storage.objects
        if self.headers.get("If-None-Match") == "*" and there:
            self._refuse(409, "BlobAlreadyExists")
        elif wanted is not None and (not there or wanted != self._about(key)["ETag"]):
            self._refuse(412, "ConditionNotMet")
        elif query.get("comp") == "block":
            storage.parts.setdefault(key, {})[query["blockid"]] = body
            self._answer(201)
        else:
            if query.get("comp") == "blocklist":
                blocks = storage.parts.pop(key)
                body = b"".join(blocks[name] for name in re.findall(r"<Uncommitted>(.+?)<", body.decode()))
            elif copied := self.headers.get("x-ms-copy-source"):
                body = storage.objects[unquote(urlsplit(copied).path).lstrip("/").partition("/")[2]][0]
            storage.keep(key, body)
            self._answer(201, b"", **self._about(key))


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def _serving(handler: type[_Handler]) -> Iterator[Storage]:
    server, storage = _Server(("127.0.0.1", 0), handler), Storage()
    server.storage = storage  # type: ignore[attr-defined]
    with answering(server) as storage.url:
        yield storage


def google_server() -> contextlib.AbstractContextManager[Storage]:
    """A server of Google Cloud Storage on loopback."""
    return _serving(_Google)


def azure_server() -> contextlib.AbstractContextManager[Storage]:
    """A server of Azure on loopback."""
    return _serving(_Azure)
