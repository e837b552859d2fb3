"""Models written to buckets: the bytes of a local run, no local file, and nothing that looks whole before it is."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import contents, made
from making import command, environment, one_line, run, save
from remote_parts import s3_server
from strategies import gaussian

from quantcli.errors import QuantcliError
from quantcli.stores.remote import lock as locking
from quantcli.stores.remote import s3
from quantcli.stores.remote.bucket import WRITER
from quantcli.stores.remote.upload import LEAST, Upload


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Any, str]]:
    """A client of moto's server, and the URL of that."""
    with s3_server() as found:
        yield found


@pytest.fixture
def objects(server: tuple[Any, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an S3 server with one empty bucket, `models`."""
    client, url = server
    for name, value in {"ENDPOINT_URL": url, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    client.create_bucket(Bucket="models")
    yield client
    for upload in uploads(client):
        client.abort_multipart_upload(Bucket="models", **upload)
    for key in held(client):
        client.delete_object(Bucket="models", Key=key)
    client.delete_bucket(Bucket="models")


def held(client: Any, prefix: str = "") -> dict[str, bytes]:
    """All objects below a key, by what comes behind it."""
    found = client.list_objects_v2(Bucket="models", Prefix=prefix).get("Contents", ())
    keys = [o["Key"] for o in found]
    return {k[len(prefix) :]: client.get_object(Bucket="models", Key=k)["Body"].read() for k in keys}


def uploads(client: Any) -> list[dict[str, str]]:
    """Uploads that were begun and neither completed nor aborted."""
    found = client.list_multipart_uploads(Bucket="models").get("Uploads", ())
    return [{"Key": u["Key"], "UploadId": u["UploadId"]} for u in found]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return made(tmp_path / "model")


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A folder of three shards, each of which becomes two parts of an upload at 8 bits."""
    folder, homes = tmp_path / "large", dict[str, str]()
    folder.mkdir()
    weights = (np.random.default_rng(0).standard_normal((2048, 1024)) * 0.02).astype("<f2")
    for shard in range(3):
        name = f"model-{shard + 1:05d}-of-00003.safetensors"
        tensors = {f"model.layers.{shard}.mlp.{n}_proj.weight": weights for n in ("up", "gate", "down")}
        save(folder / name, tensors)
        homes |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    return folder


# ---- the same bytes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [("--bits", 4), ("--bits", 4, "--to", "mlx"), ("--bits", 4, "--max-shard-size", "20kB")]
)
def test_a_folder_has_the_bytes_of_a_local_run(objects: Any, model: Path, tmp_path: Path, options: Any) -> None:
    """Quote: "The same bytes as a local run"; and the summary and JSON show the URL."""
    assert run("quantize", model, "-o", tmp_path / "local", "-q", *options).code == 0
    ran = run("quantize", model, "-o", "s3://models/deep/w4/", "--json", *options)
    assert ran.code == 0, ran.err
    assert ran.json["output"].rstrip("/") == "s3://models/deep/w4"
    assert held(objects, "deep/w4/") == contents(tmp_path / "local")
    assert set(held(objects)) == {f"deep/w4/{name}" for name in contents(tmp_path / "local")}
    assert run("verify", "s3://models/deep/w4").code == 0


def test_files_have_the_bytes_of_a_local_run(objects: Any, model: Path, tmp_path: Path) -> None:
    one = save(tmp_path / "one.safetensors", {"w": gaussian(1400, 4096), "v": gaussian(7)})
    for words in (
        ("quantize", one, "--bits", 4, "-o", "{}/a.safetensors"),
        ("quantize", one, "--bits", 8, "--to", "gguf", "--container", "-o", "{}/a.gguf"),
        ("dequantize", "{}/a.safetensors", "-o", "{}/floats.safetensors"),
    ):
        for place in (str(tmp_path), "s3://models"):
            ran = run(*(str(word).format(place) for word in words), "-q")
            assert ran.code == 0, ran.err
    for name in ("a.safetensors", "a.gguf", "floats.safetensors"):
        assert held(objects, name)[""] == (tmp_path / name).read_bytes()
    assert uploads(objects) == [] and not [key for key in held(objects) if key.startswith(".")]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_parts_in_a_bucket_are_merged_to_the_bytes_of_one_run(
    objects: Any, model: Path, tmp_path: Path, count: int
) -> None:
    assert run("quantize", model, "-o", tmp_path / "local", "-q", "--bits", 4).code == 0
    words = ("quantize", model, "-o", "s3://models/w4", "-q", "--bits", 4)
    for number in range(1, count):
        assert run(*words, "--part", f"{number}/{count}").code == 0
    said = one_line(run("merge", "s3://models/w4"), 1)
    assert "missing" in said or "no part" in said
    assert run(*words, "--part", f"{count}/{count}").code == 0
    assert run(*words, "--part", f"{count}/{count}").code == 0, "a part may be run again"
    ran = run("merge", "s3://models/w4")
    assert ran.code == 0, ran.err
    assert held(objects) == {f"w4/{name}": content for name, content in contents(tmp_path / "local").items()}


def test_a_bucket_joins_what_parts_have_of_a_file(objects: Any, faulty: Callable[..., _Proxy], tmp_path: Path) -> None:
    """Of a file that two parts share the bucket copies what fills parts of an upload; only the rest is moved here."""
    weights = np.random.default_rng(0).standard_normal((2048, 1024)).astype("<f2")
    one = save(tmp_path / "one.safetensors", {f"layers.{n}.weight": weights for n in range(20)})
    assert run("quantize", one, "-o", tmp_path / "w8.safetensors", "-q", "--bits", 8).code == 0
    words = ("quantize", one, "-o", "s3://models/w8.safetensors", "-q", "--bits", 8)
    for number in (1, 2):
        assert run(*words, "--part", f"{number}/2").code == 0
    sent = list[str]()
    proxy = faulty(lambda method, path: sent.append(f"{method} {path}"))
    ran = run("merge", "s3://models/w8.safetensors")
    assert ran.code == 0, ran.err
    assert held(objects) == {"w8.safetensors": (tmp_path / "w8.safetensors").read_bytes()}
    numbers = [request for request in sent if "partNumber" in request]
    assert len(numbers) == -(-(tmp_path / "w8.safetensors").stat().st_size // LEAST) == len(proxy.copies) + 2
    assert proxy.moved < 3 * LEAST


def test_an_object_that_another_run_made_meanwhile_stays(
    objects: Any, faulty: Callable[..., _Proxy], tmp_path: Path
) -> None:
    """The bucket itself is told to copy only where there is none: what another wrote meanwhile is not replaced."""
    one = save(tmp_path / "one.safetensors", {"w": gaussian(64, 256)})

    def meanwhile(method: str, path: str) -> tuple[int, str] | None:
        if method == "PUT" and path.endswith("/w4.safetensors") and ".quantcli" not in path:
            objects.put_object(Bucket="models", Key="w4.safetensors", Body=b"theirs")
            proxy.taken.add(path)
        return None

    proxy = faulty(meanwhile)
    ran = run("quantize", one, "-o", "s3://models/w4.safetensors", "--bits", 4)
    assert "another process created the output" in one_line(ran, 1)
    assert held(objects) == {"w4.safetensors": b"theirs"}


_HOOKED = """
import os, sys

def seen(event, given):
    if event == "open" and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        if not str(given[0]).startswith(("/dev/", "/proc/")):
            sys.stderr.write(f"opened {given[0]}")
    if event in ("os.mkdir", "os.rename", "tempfile.mkstemp", "tempfile.mkdtemp"):
        sys.stderr.write(f"{event} {given}")

sys.addaudithook(seen)
from quantcli.__main__ import main
main()
"""


def test_nothing_is_written_to_this_machine(objects: Any, large: Path, tmp_path: Path) -> None:
    """Quote: "needs no local disk at all". An audit hook of Python sees every file that is opened for writing."""
    script = tmp_path / "hooked.py"
    script.write_text(_HOOKED)
    objects.put_object(Bucket="models", Key="src/x", Body=b"")
    for path in large.iterdir():
        objects.put_object(Bucket="models", Key=f"src/{path.name}", Body=path.read_bytes())
    words = [
        sys.executable,
        "-B",
        str(script),
        *["quantize", "s3://models/src", "--bits", "8", "-o", "s3://models/w8", "-q"],
    ]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "opened" not in done.stderr and "os." not in done.stderr and "tempfile" not in done.stderr
    assert "config.json" in held(objects, "w8/")


# ---- one run, and what it leaves ------------------------------------------------------------------------------------


def test_an_output_that_is_there_stays_without_force(objects: Any, model: Path) -> None:
    assert run("quantize", model, "-o", "s3://models/w4", "-q", "--bits", 4).code == 0
    before = held(objects)
    assert "the output exists; use --force" in one_line(run("quantize", model, "-o", "s3://models/w4", "--bits", 8), 2)
    assert held(objects) == before
    objects.put_object(Bucket="models", Key="w4/stale.safetensors", Body=b"old")
    assert run("quantize", model, "-o", "s3://models/w4", "-q", "--bits", 8, "--force").code == 0
    after = held(objects)
    assert set(after) == set(before) and after != before


PAGE = (200, "page")
CUT, LOST = (0, ""), (0, "lost")
"""A connection that ends without an answer: the request is not passed on, or it is, and its answer is lost."""


class _Proxy(ThreadingHTTPServer):
    """Passes requests on to an S3 server, unless `wrong` answers them: a status and a code of S3. moved: bytes sent to
    it; copies: requests that have it copy; taken: paths at which there is an object."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, behind: str, wrong: Callable[[str, str], tuple[int, str] | None]) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.behind, self.wrong = behind, wrong
        self.moved, self.copies, self.taken = 0, list[str](), set[str]()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, *_: object) -> None:
        pass


class _Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Proxy

    def log_message(self, *_: object) -> None:
        pass

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        wrong = self.server.wrong(self.command, self.path)
        if wrong == CUT:
            self.close_connection = True
            return
        if wrong is not None and wrong != LOST:
            status, content = (
                wrong[0],
                b"<html></html>"
                if wrong == PAGE
                else f"<Error><Code>{wrong[1]}</Code><Message>no</Message></Error>".encode(),
            )
            self._answer(status, {}, content if self.command != "HEAD" else b"")
            return
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection", "expect")}
        if "x-amz-copy-source" in self.headers:
            self.server.copies.append(self.path)
            if self.headers.get("If-None-Match") == "*" and self.path in self.server.taken:  # moto copies even so
                self._answer(412, {}, b"<Error><Code>PreconditionFailed</Code></Error>")
                return
        with contextlib.closing(HTTPConnection(self.server.behind, timeout=60)) as behind:
            behind.request(self.command, self.path, body, headers)
            found = behind.getresponse()
            content = found.read()
            self.server.moved += len(body)
            if wrong == LOST:
                self.close_connection = True
                return
            self._answer(found.status, dict(found.getheaders()), content)

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "server", "date"):
                self.send_header(name, value)
        self.send_header(
            "Content-Length", headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
        )
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass  # noqa: N815


@pytest.fixture
def faulty(server: tuple[Any, str], objects: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., _Proxy]]:
    """Has requests go through a proxy that answers some of them itself."""
    opened = list[_Proxy]()

    def begin(wrong: Callable[[str, str], tuple[int, str] | None]) -> _Proxy:
        opened.append(_Proxy(server[1].removeprefix("http://"), wrong))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{opened[-1].server_address[1]}")
        return opened[-1]

    yield begin
    for proxy in opened:
        proxy.shutdown()
        proxy.server_close()


@pytest.mark.parametrize(
    "status, code, says",
    [
        (403, "AccessDenied", "no access with these credentials"),
        (400, "ExpiredToken", "credentials have expired"),
        (403, "QuotaExceeded", "the bucket refuses: QuotaExceeded, no"),
    ],
)
@pytest.mark.parametrize("when", ["PUT .*", "partNumber=1", "DELETE"])
def test_a_bucket_that_refuses_is_one_line_and_leaves_nothing_that_looks_whole(
    faulty: Callable[..., _Proxy], objects: Any, large: Path, status: int, code: str, says: str, when: str
) -> None:
    """Quote: "a bucket that is read-only, an upload that is cut off, credentials that expire midway"."""

    def wrong(method: str, path: str) -> tuple[int, str] | None:
        refused = {"PUT .*": method == "PUT", "partNumber=1": "partNumber=1" in path, "DELETE": method == "DELETE"}
        return (status, code) if refused[when] else None

    faulty(wrong)
    ran = run("quantize", large, "--bits", 8, "-o", "s3://models/w8", "-q")
    said = one_line(ran, 1)
    assert says in said and "s3://models/" in said
    assert not held(objects, "w8/") and (uploads(objects) == [] or when == "DELETE")


@pytest.mark.parametrize("answer", [(301, "PermanentRedirect"), PAGE])
def test_what_is_no_s3_server_is_told_in_one_line(
    faulty: Callable[..., _Proxy], objects: Any, model: Path, answer: tuple[int, str]
) -> None:
    """botocore by itself follows redirections without end, and takes any page for an answer."""
    faulty(lambda method, path: answer)
    said = one_line(run("quantize", model, "--bits", 4, "-o", "s3://models/w4"), 1)
    assert (
        said.startswith("s3://models/")
        and "no S3 server answers, or not that of this bucket; check AWS_ENDPOINT_URL" in said
    )


def test_a_refusal_names_the_request(faulty: Callable[..., _Proxy], objects: Any, model: Path) -> None:
    faulty(lambda method, path: (403, "AccessDenied") if "uploads" in path else None)
    said = one_line(run("quantize", model, "--bits", 4, "-o", "s3://models/w4"), 1)
    assert "(ListMultipartUploads: AccessDenied); writing needs the rights to put, get, list and delete" in said
    assert not held(objects)


@pytest.mark.parametrize("lost", ["/lock", "uploadId="])
def test_an_answer_that_is_lost_of_a_request_that_took_place(
    faulty: Callable[..., _Proxy], objects: Any, large: Path, tmp_path: Path, lost: str
) -> None:
    """Quote: "an upload that is cut off": the request is made again, and finds a lock that is its own, or no upload
    any more, as most servers say then."""
    assert run("quantize", large, "-o", tmp_path / "local", "-q", "--bits", 8).code == 0
    sent = list[str]()

    def wrong(method: str, path: str) -> tuple[int, str] | None:
        if method not in ("PUT", "POST") or lost not in path or (lost == "uploadId=" and method == "PUT"):
            return None
        sent.append(path)
        return LOST if len(sent) == 1 else (404, "NoSuchUpload") if path == sent[0] and lost == "uploadId=" else None

    faulty(wrong)
    ran = run("quantize", large, "--bits", 8, "-o", "s3://models/w8", "-q")
    assert ran.code == 0 and len(sent) > 1, ran.err
    assert held(objects) == {f"w8/{name}": content for name, content in contents(tmp_path / "local").items()}
    assert uploads(objects) == []


def test_there_is_no_such_bucket(objects: Any, model: Path) -> None:
    assert "no such bucket" in one_line(run("quantize", model, "--bits", 4, "-o", "s3://nowhere/a"), 1)
    for url in ("s3://models", "s3://models/", "s3://models/a//b"):
        assert "needs a name in a bucket" in one_line(run("quantize", model, "--bits", 4, "-o", url), 2)


@pytest.fixture
def killed_at(faulty: Callable[..., _Proxy]) -> Callable[..., list[str]]:
    """Runs the command in a process of its own that is killed at the first request that meets a condition; its requests
    until then. That request never reaches the server. how: the signal that ends it."""

    def go(reached: Callable[[str, str], bool], *words: object, how: signal.Signals = signal.SIGKILL) -> list[str]:
        there, dead, sent = threading.Event(), threading.Event(), list[str]()

        def stuck(method: str, path: str) -> tuple[int, str] | None:
            sent.append(f"{method} {path}")
            if not reached(method, path):
                return None
            there.set()
            dead.wait(60)
            return CUT

        faulty(stuck)
        process = subprocess.Popen(command(*words), env=environment(), stderr=subprocess.DEVNULL)
        try:
            assert there.wait(60)
            process.send_signal(how)
            process.wait(20)
        finally:
            process.kill()
            process.wait(20)
            dead.set()
        return sent

    return go


def completing_2(method: str, path: str, third: threading.Event) -> bool:
    """Whether the second shard of `large` is to be completed, once there is an upload of the third."""
    if "model-00003" in path:
        third.set()
    return method == "POST" and "model-00002" in path and "uploadId" in path and third.wait(30)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_ends_while_a_shard_is_completed_and_the_next_is_made_is_resumed(
    faulty: Callable[..., _Proxy], killed_at: Callable[..., list[str]], objects: Any, large: Path, tmp_path: Path,
    how: signal.Signals,
) -> None:  # fmt: skip
    """A shard is in the journal only when it is complete. After Ctrl-C no answer is waited for."""
    assert run("quantize", large, "-o", tmp_path / "local", "-q", "--bits", 8).code == 0
    words, third = ("quantize", large, "--bits", 8, "-o", "s3://models/w8"), threading.Event()
    killed_at(lambda method, path: completing_2(method, path, third), *words, how=how)
    assert not held(objects, "w8/") and len(uploads(objects)) == (2 if how == signal.SIGKILL else 0)
    faulty(lambda method, path: None)
    ran = run(*words, "--resume")
    assert ran.code == 0 and "resumed after 1 finished file" in ran.err, ran.err
    assert held(objects) == {f"w8/{name}": content for name, content in contents(tmp_path / "local").items()}
    assert uploads(objects) == []


def test_a_shard_that_is_refused_while_the_next_is_made_ends_the_run(
    faulty: Callable[..., _Proxy], objects: Any, large: Path, tmp_path: Path
) -> None:
    assert run("quantize", large, "-o", tmp_path / "local", "-q", "--bits", 8).code == 0
    words, third = ("quantize", large, "--bits", 8, "-o", "s3://models/w8"), threading.Event()
    refused = 403, "AccessDenied"
    faulty(lambda method, path: refused if completing_2(method, path, third) else None)
    said = run(*words, "-q").err.splitlines()
    assert len(said) == 2 and "--resume" in said[0] and "no access with these credentials (Complete" in said[1], said
    assert not held(objects, "w8/") and uploads(objects) == []
    faulty(lambda method, path: None)
    ran = run(*words, "--resume")
    assert ran.code == 0 and "resumed after 1 finished file" in ran.err, ran.err
    assert held(objects) == {f"w8/{name}": content for name, content in contents(tmp_path / "local").items()}


def test_killed_runs_leave_nothing_that_looks_whole_and_go_on(
    faulty: Callable[..., _Proxy], killed_at: Callable[..., list[str]], objects: Any, large: Path, tmp_path: Path
) -> None:
    """Quote: "kills of the process midway, then --resume"."""
    assert run("quantize", large, "-o", tmp_path / "local", "-q", "--bits", 8).code == 0
    words = ("quantize", large, "--bits", 8, "-o", "s3://models/w8")
    killed_at(lambda method, path: method == "POST" and "model-00003" in path and "uploadId" in path, *words)
    assert not held(objects, "w8/") and len(uploads(objects)) == 1
    sent = list[str]()
    faulty(lambda method, path: sent.append(path))
    ran = run(*words, "--resume")
    assert ran.code == 0, ran.err
    assert "resumed after 2 finished files" in ran.err
    assert not [path for path in sent if "partNumber" in path and "model-00001" in path]
    assert held(objects) == {f"w8/{name}": content for name, content in contents(tmp_path / "local").items()}
    assert uploads(objects) == []


def test_nothing_is_left_of_the_uploads_of_a_part_that_was_killed(
    faulty: Callable[..., _Proxy], killed_at: Callable[..., list[str]], objects: Any, large: Path
) -> None:
    """ "removed by the next run on this output": an upload that nobody ends cannot be seen, and is paid for."""
    words = ("quantize", large, "--bits", 8, "-o", "s3://models/w8", "--part", "1/2")
    killed_at(lambda method, path: "model-00001" in path and "partNumber" in path, *words)
    assert len(uploads(objects)) == 1
    faulty(lambda method, path: None)
    ran = run(*words, "-q")
    assert ran.code == 0, ran.err
    assert uploads(objects) == []


def test_a_run_that_is_killed_while_files_get_their_names_is_run_again(
    faulty: Callable[..., _Proxy], killed_at: Callable[..., list[str]], objects: Any, large: Path, tmp_path: Path
) -> None:
    assert run("quantize", large, "-o", tmp_path / "local", "-q", "--bits", 8).code == 0
    words = ("quantize", large, "--bits", 8, "-o", "s3://models/w8")
    for number in range(2):  # an old output is there the second time
        killed_at(
            lambda method, path: method == "PUT" and path.startswith("/models/w8/model-00003"),
            *words,
            *["--force"][:number],
        )
        assert not [name for name in held(objects, "w8/") if name.endswith(".json")], "a loader would take it"
        faulty(lambda method, path: None)
        ran = run(*words, "--resume", "-q")
        assert ran.code == 0, ran.err
        assert held(objects) == {f"w8/{name}": content for name, content in contents(tmp_path / "local").items()}


# ---- the lock -----------------------------------------------------------------------------------------------------


def test_two_runs_on_one_destination(objects: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quote: "two drivers on one destination"; the second is refused in one line, until the first is dead."""
    other = {"machine": "another", "process": 1, "run": "x"}
    objects.put_object(Bucket="models", Key=".w4.quantcli-partial/lock", Body=json.dumps(other).encode())
    words = ("quantize", model, "--bits", 4, "-o", "s3://models/w4", "-q")
    assert "another run is writing it" in one_line(run(*words), 1)
    assert set(held(objects)) == {".w4.quantcli-partial/lock"}, "the lock is the other's"
    monkeypatch.setattr(locking, "DEAD", -5.0)
    assert run(*words).code == 0
    assert "w4/config.json" in held(objects) and len(held(objects, ".w4")) == 0


def test_a_lock_of_a_process_of_this_machine_that_is_no_more_holds_nobody_up(objects: Any, model: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    if not locking._machine():
        pytest.skip("this system does not tell when it was started")
    text = json.dumps({"machine": locking._machine(), "process": gone.pid, "run": "x"})
    objects.put_object(Bucket="models", Key=".w4.quantcli-partial/lock", Body=text.encode())
    assert run("quantize", model, "--bits", 4, "-o", "s3://models/w4", "-q").code == 0


def test_a_run_whose_lock_was_taken_over_does_not_publish(objects: Any) -> None:
    out = WRITER.folder("s3://models/w4", force=False, in_place=False)
    with pytest.raises(QuantcliError, match="another run has taken over"), out:
        out.begin(())
        out.write("config.json", b"{}")
        objects.put_object(Bucket="models", Key=".w4.quantcli-partial/lock", Body=b"{}")
        out.publish()
    assert set(held(objects)) == {".w4.quantcli-partial/lock"}


# ---- uploads ------------------------------------------------------------------------------------------------------


def test_bytes_may_come_in_any_order_from_several_threads(objects: Any) -> None:
    """The parts are those of the offsets, the first one last; what nobody writes is zero, as in a file."""
    content = np.random.default_rng(1).bytes(17_000_001)
    upload = Upload("s3://models/x", len(content) + 1000, "x")
    starts = np.random.default_rng(2).permutation(range(0, len(content), 70_000))[::-1]

    def write(own: Any) -> None:
        for start in own:
            upload.write(int(start), content[start : start + 70_000])

    threads = [threading.Thread(target=write, args=(starts[n::3],)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "x" not in held(objects)
    upload.finish()
    assert held(objects, "x")[""] == content + bytes(1000)


@pytest.mark.parametrize("size", [0, 1, LEAST, LEAST + 1])
def test_sizes_of_uploads(objects: Any, size: int) -> None:
    upload = Upload("s3://models/x", size, "x")
    upload.write(0, b"a" * size)
    upload.finish()
    assert held(objects, "x")[""] == b"a" * size


def test_large_objects_are_copied_in_parts(objects: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "COPIED", 5 << 20)
    content = np.random.default_rng(3).bytes(11_000_000)
    objects.put_object(Bucket="models", Key="a", Body=content)
    s3.copy("s3://models/a", "s3://models/b", len(content))
    assert held(objects, "b")[""] == content


def test_the_libraries_are_imported_for_buckets_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "m.safetensors", {"w": gaussian(8, 128)})
    code = (
        "import sys; from quantcli.cli import main\n"
        f"try: main(['quantize', {str(path)!r}, '--bits', '4', '-q', '-o', {str(tmp_path / 'o.safetensors')!r}])\n"
        "except SystemExit as done: assert not done.code\n"
        "assert not {'botocore', 'obstore', 'urllib3'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True, timeout=60)
    assert os.path.exists(tmp_path / "o.safetensors")
