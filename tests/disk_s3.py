"""An S3 server whose objects are files: fast enough that what is measured is quantcli, and not the server.

    python tests/disk_s3.py FOLDER [--host 127.0.0.1] [--port 0]

It answers the requests that quantcli makes, with their conditions, and trusts everybody. moto's server, which holds
objects in memory and hands out a copy of a whole one for every range, is the judge of what is correct; this one takes
0.3 s of processor time for 1 GB in ranges. Objects that lie in FOLDER/BUCKET when it starts are there.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

BLOCK = 1 << 18


class _Held:
    """Objects of all buckets: files by the name `bucket/key`, and the tag of each. uploads: by number, where their
    parts lie."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lock = folder, threading.Lock()
        self.parts = folder / ".parts"
        self.parts.mkdir(parents=True, exist_ok=True)
        self.uploads: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        for bucket in folder.iterdir():
            for path in bucket.rglob("*") if bucket != self.parts else ():
                if path.is_file():
                    self.tags[quote(str(path.relative_to(folder)))] = self.tag()
                    path.rename(self.path(str(path.relative_to(folder))))

    def tag(self) -> str:
        """A tag that no other object has."""
        return f'"{os.urandom(16).hex()}"'

    def path(self, name: str) -> Path:
        """The file of an object. Keys may be names of folders of other keys, so that files lie side by side."""
        bucket, _, key = name.partition("/")
        return self.folder / bucket / quote(key, safe="")

    def keep(self, name: str, made: Path, *, create: bool = False, match: str | None = None) -> str | None:
        """Give a file that was made the name of an object; its tag, or None where a condition does not hold."""
        with self.lock:
            there = self.tags.get(name)
            if (create and there is not None) or (match is not None and match != there):
                made.unlink()
                return None
            self.path(name).parent.mkdir(exist_ok=True)
            os.replace(made, self.path(name))
            self.tags[name] = self.tag()
            return self.tags[name]


class Handler(BaseHTTPRequestHandler):
    """Answers requests as S3 does."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    # ---- requests -------------------------------------------------------------------------------------------------

    def _asked(self) -> tuple[str, dict[str, str]]:
        path, query = urlsplit(self.path)[2:4]
        return unquote(path).strip("/"), dict(parse_qsl(query, keep_blank_values=True))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name, query = self._asked()
        held, tag = self.server.held, self.server.held.tags.get(name)
        if "/" not in name:
            self._list(name, query)
        elif tag is None:
            self._refuse(404, "NoSuchKey")
        elif self.headers.get("If-Match", tag) != tag:
            self._refuse(412, "PreconditionFailed")
        else:
            with open(held.path(name), "rb") as file:
                self._send(file.fileno(), os.fstat(file.fileno()), tag)

    def do_PUT(self) -> None:
        name, query = self._asked()
        held, number = self.server.held, query.get("partNumber")
        if "/" not in name:
            (held.folder / name).mkdir(exist_ok=True)
            self._answer(200)
            return
        if number is not None and query["uploadId"] not in held.uploads:
            self._read(None)
            self._refuse(404, "NoSuchUpload")
            return
        made = held.parts / (f"{query['uploadId']}-{int(number):05d}" if number else os.urandom(8).hex())
        source = self.headers.get("x-amz-copy-source")
        if source is None:
            self._read(made)
        elif not self._copied(unquote(source).lstrip("/"), made):
            return
        tag = held.tag()
        if number is None:
            condition = {"create": self.headers.get("If-None-Match") == "*", "match": self.headers.get("If-Match")}
            kept = held.keep(name, made, **condition)  # type: ignore[arg-type]
            if kept is None:
                self._refuse(412, "PreconditionFailed")
                return
            tag = kept
        kind = "CopyPartResult" if number else "CopyObjectResult"
        about = f"<{kind}><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>{escape(tag)}</ETag></{kind}>"
        self._answer(200, about.encode() if source is not None else b"", ETag=tag)

    def do_POST(self) -> None:
        name, query = self._asked()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        held = self.server.held
        if "uploads" in query:
            upload = os.urandom(8).hex()
            held.uploads[upload] = name
            self._xml("InitiateMultipartUploadResult", UploadId=upload)
        elif held.uploads.get(query.get("uploadId", "")) != name:
            self._refuse(404, "NoSuchUpload")
        else:
            upload, made = query["uploadId"], held.parts / os.urandom(8).hex()
            with open(made, "wb") as out:
                for number in map(int, re.findall(r"<PartNumber>(\d+)<", body)):
                    part = held.parts / f"{upload}-{number:05d}"
                    with open(part, "rb") as file:
                        _moved(file.fileno(), out.fileno())
                    part.unlink()
            del held.uploads[upload]
            tag = held.keep(name, made, create=self.headers.get("If-None-Match") == "*")
            if tag is None:
                self._refuse(412, "PreconditionFailed")
            else:
                self._xml("CompleteMultipartUploadResult", ETag=tag)

    def do_DELETE(self) -> None:
        name, query = self._asked()
        held = self.server.held
        if "uploadId" in query:
            held.uploads.pop(query["uploadId"], None)
            for path in held.parts.glob(f"{query['uploadId']}-*"):
                path.unlink()
        elif held.tags.pop(name, None) is not None:
            held.path(name).unlink()
        self._answer(204)

    # ---- parts of them --------------------------------------------------------------------------------------------

    def _range(self, asked: str | None, size: int) -> tuple[int, int]:
        """First byte and the one behind the last."""
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", asked or "")
        return (int(found[1]), min(int(found[2]) + 1, size)) if found else (0, size)

    def _send(self, file: int, about: os.stat_result, tag: str) -> None:
        asked = self.headers.get("Range")
        first, end = self._range(asked, about.st_size)
        if asked and first >= about.st_size:
            self._refuse(416, "InvalidRange")
            return
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{about.st_size}")
        self.send_header("Content-Length", str(end - first))
        self.send_header("ETag", tag)
        self.send_header("Last-Modified", formatdate(about.st_mtime, usegmt=True))
        self.end_headers()
        while first < end and self.command != "HEAD":
            sent = os.sendfile(self.connection.fileno(), file, first, min(end - first, 1 << 24))
            if not sent:
                raise ConnectionResetError
            first += sent

    def _read(self, into: Path | None) -> None:
        """Read the body of a request to a file."""
        left, block = int(self.headers.get("Content-Length", 0)), memoryview(bytearray(BLOCK))
        with open(into if into is not None else os.devnull, "wb", buffering=0) as out:
            while left:
                count = self.rfile.readinto1(block[: min(left, BLOCK)])
                if not count:
                    raise ConnectionResetError
                out.write(block[:count])
                left -= count

    def _copied(self, source: str, made: Path) -> bool:
        """Copy an object, or a range of it, on the server; False where that was refused."""
        held = self.server.held
        tag = held.tags.get(source)
        if tag is None:
            self._refuse(404, "NoSuchKey")
        elif self.headers.get("x-amz-copy-source-if-match", tag) != tag:
            self._refuse(412, "PreconditionFailed")
        elif "x-amz-copy-source-range" not in self.headers:
            os.link(held.path(source), made)  # no object is ever changed
            return True
        else:
            with open(held.path(source), "rb") as file, open(made, "wb") as out:
                size = os.fstat(file.fileno()).st_size
                _moved(file.fileno(), out.fileno(), *self._range(self.headers.get("x-amz-copy-source-range"), size))
            return True
        return False

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        held = self.server.held
        prefix = f"{bucket}/{query.get('prefix', '')}"
        if not bucket or not (held.folder / bucket).is_dir():
            self._refuse(404, "NoSuchBucket")
            return
        if "uploads" in query:
            found = [(u, name) for u, name in held.uploads.items() if name.startswith(prefix)]
            inner = "".join(f"<Upload>{_key(n)}<UploadId>{u}</UploadId></Upload>" for u, n in found)
            self._answer(200, f"<ListMultipartUploadsResult>{inner}</ListMultipartUploadsResult>".encode())
            return
        about = "<LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        names = sorted(n for n in list(held.tags) if n.startswith(prefix))[: int(query.get("max-keys", 1000))]
        inner = "".join(
            f"<Contents>{_key(n)}{about}<ETag>{escape(held.tags[n])}</ETag>"
            f"<Size>{held.path(n).stat().st_size}</Size></Contents>"
            for n in names
        )
        self._answer(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{inner}</ListBucketResult>".encode())

    def _xml(self, kind: str, **values: str) -> None:
        inner = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in values.items())
        self._answer(200, f"<{kind}>{inner}</{kind}>".encode())

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def _answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/xml", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD" and status != 204:
            self.wfile.write(content)


def _key(name: str) -> str:
    return f"<Key>{escape(name.partition('/')[2])}</Key>"


def _moved(source: int, target: int, first: int = 0, end: int = -1) -> None:
    """Copy bytes between files inside the system."""
    end = os.fstat(source).st_size if end < 0 else end
    while first < end:
        first += os.sendfile(target, source, first, min(end - first, 1 << 24))


class Server(ThreadingHTTPServer):
    """The objects of a folder, behind HTTP."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path, host: str, port: int, handler: type[Handler] = Handler) -> None:
        super().__init__((host, port), handler)
        self.held = _Held(folder)

    def handle_error(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def disk_server(folder: Path) -> Iterator[dict[str, str]]:
    """What names a server of a folder in the environment; it is a process of its own."""
    process = subprocess.Popen([sys.executable, __file__, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    secret = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    try:
        yield {"AWS_ENDPOINT_URL": process.stdout.readline().strip(), **secret}
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    server = Server(given.folder, given.host, given.port)
    print(f"http://{given.host}:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
