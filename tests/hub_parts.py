"""A hub for the tests that can be written to: the routes by which huggingface_hub makes repositories, uploads, commits.

Repositories are kept in memory, large files by their SHA-256 on disk, as the hub keeps them.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from remote_parts import answering

LARGE = re.compile(r"\.(?:safetensors|gguf|onnx|bin|pt)$")


@dataclass
class Repository:
    """A repository. branches: the commits of each, the newest last; content: the files of each commit by path, small
    ones as bytes, large ones as the SHA-256 that names them."""

    private: bool = False
    branches: dict[str, list[str]] = field(default_factory=lambda: {"main": ["c" * 40]})
    content: dict[str, dict[str, bytes | str]] = field(default_factory=lambda: {"c" * 40: {".gitattributes": b""}})
    tags: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit_of(self, revision: str) -> str | None:
        """The commit that a revision names."""
        if revision in self.content:
            return revision
        return self.branches[revision][-1] if revision in self.branches else self.tags.get(revision)

    def files(self, revision: str = "main") -> dict[str, bytes | str]:
        """The files of a revision."""
        return self.content[self.commit_of(revision) or ""]


@dataclass
class WritableHub:
    """A hub. store: the folder of large files. owners: who may create and write; tokens: who has each, and whether it
    writes. chunk: bytes of the parts in which files larger than that are sent. fault: called before each answer with
    the method, the path and the number of such requests; a status replaces the answer, bytes cut the connection."""

    store: Path
    url: str = ""
    owners: tuple[str, ...] = ("me", "org")
    tokens: dict[str, bool] = field(default_factory=lambda: {"hf_write": True, "hf_read": False})
    repos: dict[str, Repository] = field(default_factory=dict)
    chunk: int = 1 << 30
    largest: int = 50 * 10**9
    ignored: str = "\0"
    fault: Callable[[str, str, int], int | bytes | None] = lambda method, path, number: None
    log: list[tuple[str, str]] = field(default_factory=list)
    uploaded: list[str] = field(default_factory=list)

    def content(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a repository with their bytes."""
        found = self.repos[repo].files(revision)
        return {p: c if isinstance(c, bytes) else (self.store / c).read_bytes() for p, c in found.items()}

    def put(self, repo: str, content: dict[str, bytes], branch: str = "main") -> str:
        """Commit files as somebody else would."""
        files: dict[str, bytes | str] = {**self.repos.setdefault(repo, Repository()).files(branch)}
        for path, data in content.items():
            files[path] = self.keep(data) if LARGE.search(path) else data
        return self.commit(self.repos[repo], branch, files, "by somebody else")

    def keep(self, data: bytes) -> str:
        """Keep a large file."""
        oid = hashlib.sha256(data).hexdigest()
        (self.store / oid).write_bytes(data)
        return oid

    @staticmethod
    def commit(repo: Repository, branch: str, files: dict[str, bytes | str], message: str) -> str:
        """Make a commit."""
        sha = hashlib.sha1(f"{branch}{len(repo.content)}".encode()).hexdigest()
        repo.content[sha] = files
        repo.branches[branch].append(sha)
        repo.messages.append(message)
        return sha


class _RefusedError(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._handle("GET")

    def do_HEAD(self) -> None:
        self._handle("HEAD")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_PUT(self) -> None:
        self._handle("PUT")

    def do_DELETE(self) -> None:
        self._handle("DELETE")

    def _handle(self, method: str) -> None:
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        with self.server.lock:
            hub.log.append((method, path))
            number = sum(one == (method, path) for one in hub.log)
        wrong = hub.fault(method, path, number)
        if isinstance(wrong, bytes):
            self.wfile.write(wrong)
            self.close_connection = True
            return
        try:
            if isinstance(wrong, int):
                self._body()
                raise _RefusedError(wrong)
            if method == "PUT":
                self._stored(path)
                return
            body = self._body()
            if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._resolved(*match.groups())
            else:
                with self.server.lock:
                    self._answer(200, self._api(method, path, body))
        except _RefusedError as refused:
            told = {"error": refused.message, "errors": [{"message": refused.message}]}
            self._answer(refused.status, told, refused.code, refused.message)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            return b"".join(self._chunks())
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _answer(self, status: int, value: Any, code: str = "", message: str = "") -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/json")
        if code:
            self.send_header("X-Error-Code", code)
        if message:
            self.send_header("X-Error-Message", message)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # ---- who may do what ------------------------------------------------------------------------------------------

    def _token(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.server.hub.tokens:
            raise _RefusedError(401, message="Invalid credentials in Authorization header")
        return token or None

    def _may_write(self, owner: str) -> None:
        token = self._token()
        if token is None:
            raise _RefusedError(401, message="Invalid username or password.")
        if not self.server.hub.tokens[token] or owner not in self.server.hub.owners:
            raise _RefusedError(403, message=f"You don't have the rights to write under the namespace {owner}")

    def _repo(self, name: str) -> Repository:
        repo = self.server.hub.repos.get(name)
        if repo is None or (repo.private and self._token() is None):
            raise _RefusedError(401 if self._token() is None else 404, "RepoNotFound", "Repository not found")
        return repo

    @staticmethod
    def _commit(repo: Repository, revision: str) -> str:
        commit = repo.commit_of(revision)
        if commit is None:
            raise _RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # ---- routes ---------------------------------------------------------------------------------------------------

    def _api(self, method: str, path: str, body: bytes) -> Any:
        hub = self.server.hub
        if path == "/api/whoami-v2":
            token = self._token()
            if token is None:
                raise _RefusedError(401, message="Invalid username or password.")
            role = "write" if hub.tokens[token] else "read"
            return {"name": "me", "orgs": [{"name": "org"}], "auth": {"accessToken": {"role": role}}}
        if path == "/api/validate-yaml":
            bad = b"license: [" in body
            if bad:
                raise _RefusedError(400, message="bad YAML")
            return {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._may_write(match[1].partition("/")[0])
            return self._batch(json.loads(body))
        if match := re.fullmatch(r"/lfs/([0-9a-f]{64})/(complete|verify)", path):
            return self._completed(match[1], match[2], json.loads(body))
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)(?:/(.+))?)?", path)
        if match is None:
            raise _RefusedError(404)
        name, verb, rest = match[1], match[2] or "revision", match[3] or "main"
        repo = self._repo(name)
        if method != "GET":
            self._may_write(name.partition("/")[0])
        if verb == "branch":
            return self._branch(method, repo, rest)
        if verb == "refs":
            heads = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": c[-1]} for b, c in repo.branches.items()]
            tags = [{"name": t, "ref": f"refs/tags/{t}", "targetCommit": c} for t, c in repo.tags.items()]
            return {"branches": heads, "converts": [], "tags": tags}
        commit = self._commit(repo, rest)
        if verb == "revision":
            siblings = [{"rfilename": p} for p in repo.content[commit]]
            return {"id": name, "sha": commit, "private": repo.private, "siblings": siblings}
        if verb == "tree":
            return [self._entry(path, held) for path, held in repo.content[commit].items()]
        if verb == "preupload":
            return {"files": [self._mode(repo.content[commit], f["path"]) for f in json.loads(body)["files"]]}
        assert verb == "commit", path
        if rest not in repo.branches:
            raise _RefusedError(400, message="not a branch")
        return self._committed(name, repo, rest, body)

    def _create(self, asked: dict[str, Any]) -> Any:
        hub = self.server.hub
        name = f"{asked['organization']}/{asked['name']}"
        self._may_write(asked["organization"])
        if name in hub.repos:
            raise _RefusedError(409, message="You already created this model repo")
        hub.repos[name] = Repository(private=asked.get("visibility") == "private" or bool(asked.get("private")))
        return {"url": f"{hub.url}/{name}", "name": name, "id": name}

    @staticmethod
    def _branch(method: str, repo: Repository, branch: str) -> Any:
        if method == "DELETE":
            del repo.branches[branch]
        elif branch in repo.branches:
            raise _RefusedError(409, message="Reference already exists")
        else:
            repo.branches[branch] = [repo.branches["main"][-1]]
        return {}

    def _entry(self, path: str, held: bytes | str) -> dict[str, Any]:
        if isinstance(held, bytes):
            oid = hashlib.sha1(b"blob %d\0" % len(held) + held).hexdigest()
            return {"type": "file", "path": path, "oid": oid, "size": len(held)}
        size = (self.server.hub.store / held).stat().st_size
        lfs = {"oid": held, "size": size, "pointerSize": 134}
        return {"type": "file", "path": path, "oid": hashlib.sha1(held.encode()).hexdigest(), "size": size, "lfs": lfs}

    def _mode(self, content: dict[str, bytes | str], path: str) -> dict[str, Any]:
        held = content.get(path)
        known = held if isinstance(held, str) else self._entry(path, held)["oid"] if held is not None else None
        mode = "lfs" if LARGE.search(path) else "regular"
        ignored = re.search(self.server.hub.ignored, path) is not None
        return {"path": path, "uploadMode": mode, "shouldIgnore": ignored, "oid": known}

    def _batch(self, asked: dict[str, Any]) -> Any:
        hub, found = self.server.hub, list[dict[str, Any]]()
        assert asked["hash_algo"] == "sha256" and asked["operation"] == "upload"
        for one in asked["objects"]:
            oid, size, href = one["oid"], one["size"], f"{hub.url}/lfs/{one['oid']}"
            if size > hub.largest:
                found.append({**one, "error": {"code": 422, "message": "You need to configure your repository"}})
                continue
            if (hub.store / oid).exists():
                found.append(one)
                continue
            upload: dict[str, Any] = {"href": href}
            if size > hub.chunk:
                parts = range(1, -(-size // hub.chunk) + 1)
                header = {f"{n:05d}": f"{href}/{n}" for n in parts}
                upload = {"href": f"{href}/complete", "header": {"chunk_size": str(hub.chunk), **header}}
            found.append({**one, "actions": {"upload": upload, "verify": {"href": f"{href}/verify"}}})
        return {"transfer": "multipart", "objects": found}

    def _completed(self, oid: str, verb: str, asked: dict[str, Any]) -> Any:
        store = self.server.hub.store
        if verb == "complete":
            with open(store / f"{oid}.new", "wb") as file:
                for part in asked["parts"]:
                    own = store / f"{oid}.{part['partNumber']}"
                    assert part["etag"] == f'"{own.stat().st_size}"'
                    file.write(own.read_bytes())
                    own.unlink()
            self._take(oid, store / f"{oid}.new")
        if not (store / oid).exists():
            raise _RefusedError(404)
        assert verb == "complete" or (store / oid).stat().st_size == asked["size"]
        return {}

    def _take(self, oid: str, path: Path) -> None:
        """Give an uploaded file its name, where it is what it was said to be."""
        with open(path, "rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
        if digest.hexdigest() != oid:
            path.unlink()
            raise _RefusedError(400, message="not the bytes that were announced")
        path.rename(path.with_name(oid))
        self.server.hub.uploaded.append(oid)

    def _stored(self, path: str) -> None:
        """A PUT of a whole file or a part; one that is cut off leaves nothing."""
        match = re.fullmatch(r"/lfs/([0-9a-f]{64})(?:/(\d+))?", path)
        assert match is not None and "Authorization" not in self.headers
        store, left = self.server.hub.store, int(self.headers.get("Content-Length", -1))
        new = store / f"{match[1]}.{threading.get_ident()}.put"
        with open(new, "wb") as file:
            if left < 0:
                file.writelines(self._chunks())
            while left > 0 and (block := self.rfile.read(min(left, 1 << 20))):
                file.write(block)
                left -= len(block)
        if left > 0:
            new.unlink()
            self.close_connection = True
            return
        size = new.stat().st_size
        if match[2]:
            new.rename(store / f"{match[1]}.{match[2]}")
        else:
            with self.server.lock:
                self._take(match[1], new)
        self.send_response(200)
        self.send_header("ETag", f'"{size}"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _committed(self, name: str, repo: Repository, branch: str, body: bytes) -> Any:
        hub, lines = self.server.hub, [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit", repo.branches[branch][-1]) != repo.branches[branch][-1]:
            raise _RefusedError(412, message="A commit has happened since. Please refresh and try again.")
        files = {**repo.files(branch)}
        for line in lines[1:]:
            key, value = line["key"], line["value"]
            if key == "deletedFile":
                del files[value["path"]]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile" and (hub.store / value["oid"]).exists():
                files[value["path"]] = value["oid"]
            else:
                raise _RefusedError(400, message=f"{key}: a file that was not uploaded")
        sha = hub.commit(repo, branch, files, header["summary"])
        return {"success": True, "commitOid": sha, "commitUrl": f"{hub.url}/{name}/commit/{sha}", "pullRequestUrl": ""}

    def _resolved(self, name: str, revision: str, path: str) -> None:
        with self.server.lock:
            repo = self._repo(name)
            held = repo.content[self._commit(repo, revision)].get(path)
        if held is None:
            raise _RefusedError(404, "EntryNotFound")
        whole = held if isinstance(held, bytes) else (self.server.hub.store / held).read_bytes()
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(match[1]), min(int(match[2]), len(whole) - 1)) if match else (0, len(whole) - 1)
        self.send_response(206 if match else 200)
        if match:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(whole)}")
        self.send_header("ETag", f'"{hashlib.sha1(whole).hexdigest()}"')
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(whole[first : last + 1])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: WritableHub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.lock = hub, threading.RLock()

    def handle_error(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def writable_hub(store: Path, **how: Any) -> Iterator[WritableHub]:
    """A hub on loopback."""
    store.mkdir(exist_ok=True)
    hub = WritableHub(store, **how)
    server = _Server(hub)
    with answering(server) as hub.url:
        yield hub
