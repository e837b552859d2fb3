"""Models behind URLs: the same bytes as from a disk, few requests, bounded memory, and one line for every fault."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import contents, made
from hypothesis import given
from hypothesis import strategies as st
from making import command, environment, one_line, run, run_process, save
from remote_parts import COMMIT, OLD, Hub, Served, answering, s3_server, serving
from strategies import gaussian

import quantcli
from quantcli.errors import DataError, QuantcliError, UsageError
from quantcli.stores import places
from quantcli.stores.remote import addresses, reading

_numbers = count()


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PAUSES", [0.01, 0.01])


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A hub of one repository, of another name for each test: lists are believed for a minute."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with serving(made(tmp_path / "model"), hub=Hub(repo=f"org/model-{next(_numbers)}")) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        yield served


@pytest.fixture(scope="module")
def bucket() -> Iterator[tuple[object, str]]:
    """A client of moto's server, and the URL of that."""
    with s3_server() as (client, url):
        client.create_bucket(Bucket="models")
        yield client, url


@pytest.fixture
def s3(bucket: tuple[object, str], monkeypatch: pytest.MonkeyPatch) -> object:
    client, url = bucket
    for name, value in {"ENDPOINT_URL": url, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    return client


def quantized(source: object, output: Path, *options: object) -> dict[str, bytes]:
    """The files that a run writes; the model card names the source, and is not one of them."""
    ran = run("quantize", source, "-o", output, "--bits", 4, "--quiet", *options)
    assert ran.code == 0, ran.err
    found = contents(output) if output.is_dir() else {"": output.read_bytes()}
    return {name: content for name, content in found.items() if name != "README.md"}


# ---- the same bytes -----------------------------------------------------------------------------------------------


def test_a_repository_gives_the_bytes_of_its_folder_and_is_named_with_its_commit(hub: Served, tmp_path: Path) -> None:
    """Quote: "the commit pinned and recorded as provenance"."""
    assert hub.hub is not None
    local = quantized(hub.folder, tmp_path / "local")
    assert quantized(f"hf://{hub.hub.repo}", tmp_path / "remote") == local
    card = (tmp_path / "remote" / "README.md").read_text()
    assert f"base_model: {hub.hub.repo}\n" in card
    found = run("quantize", f"hf://{hub.hub.repo}@v1", "-o", tmp_path / "again", "--bits", 4, "--json").json
    assert found["source"] == f"hf://{hub.hub.repo}@{OLD}"
    shard = "model-00002-of-00004.safetensors"
    one = quantized(f"hf://{hub.hub.repo}/{shard}", tmp_path / "one.safetensors")
    assert one == quantized(hub.folder / shard, tmp_path / "own.safetensors")
    assert not any("blobs" in path for path, _ in hub.log)


def test_a_subfolder_of_a_repository(hub: Served) -> None:
    assert hub.hub is not None
    save(hub.folder / "pooling" / "model.safetensors", {"w": gaussian(8, 128)})
    found = run("inspect", f"hf://{hub.hub.repo}/pooling", "--json").json
    assert found["source"] == f"hf://{hub.hub.repo}@{COMMIT}/pooling" and len(found["tensors"]) == 1


def test_a_bucket_gives_the_bytes_of_its_folder(s3: object, tmp_path: Path) -> None:
    folder = made(tmp_path / "model")
    for name, content in contents(folder).items():
        s3.put_object(Bucket="models", Key=f"a/model/{name}", Body=content)  # type: ignore[attr-defined]
    local = quantized(folder, tmp_path / "local")
    assert quantized("s3://models/a/model", tmp_path / "remote") == local
    assert quantized("s3://models/a/model/model.safetensors.index.json", tmp_path / "index") == local
    for words in (["compare", folder], ["report", tmp_path / "local", "--against"], ["inspect"]):
        ran = run(*words, "s3://models/a/model", "--json")
        assert ran.code == 0, ran.err
    assert run("verify", tmp_path / "local", "--source", "s3://models/a/model").code == 0


def test_a_web_server_gives_the_bytes_of_its_folder_and_says_that_it_lists_none(tmp_path: Path) -> None:
    folder = made(tmp_path / "model")
    (folder / "pooling" / "README.md").unlink()
    local = quantized(folder, tmp_path / "local")
    with serving(folder) as served:
        assert quantized(served.url, tmp_path / "remote") == local
        ran = run("quantize", f"{served.url}/model.safetensors.index.json", "-o", tmp_path / "index", "--bits", 4)
        assert "a web server does not list its folders" in ran.err
        assert {n: c for n, c in contents(tmp_path / "index").items() if n != "README.md"} == local
        shard = "model-00001-of-00004.safetensors"
        one = quantized(f"{served.url}/{shard}?download=true", tmp_path / "one.safetensors")
    assert one == quantized(folder / shard, tmp_path / "own.safetensors")


def test_an_output_without_a_name_is_in_the_current_folder(
    hub: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub.hub is not None
    monkeypatch.chdir(tmp_path)
    assert run("quantize", f"hf://{hub.hub.repo}", "--bits", 4).code == 0
    assert (tmp_path / f"{hub.hub.repo.partition('/')[2]}-w4g128" / "config.json").is_file()
    assert run("dequantize", f"hf://{hub.hub.repo}").code == 1  # it is not quantized


def test_dequantize_and_export_read_urls(tmp_path: Path) -> None:
    made_of = save(tmp_path / "model.safetensors", {"w": gaussian(64, 256)})
    quantized(made_of, tmp_path / "q.safetensors")
    outputs = {"dequantize": [], "export": ["--to", "gguf", "--container"]}
    with serving(tmp_path) as served:
        for verb, options in outputs.items():
            here, there = tmp_path / f"{verb}-a.x", tmp_path / f"{verb}-b.x"
            assert run(verb, tmp_path / "q.safetensors", *options, "-o", here).code == 0
            assert run(verb, f"{served.url}/q.safetensors", *options, "-o", there).code == 0
            assert here.read_bytes() == there.read_bytes()


def test_audit_reads_urls(tmp_path: Path) -> None:
    """The verdict on a download is the one on what is not downloaded."""
    made_of = save(tmp_path / "model.safetensors", {"w": gaussian(64, 256)})
    quantized(made_of, tmp_path / "q.safetensors")
    with serving(tmp_path) as served:
        here = run("audit", tmp_path / "q.safetensors", "--source", made_of, "--json").json
        there = run("audit", f"{served.url}/q.safetensors", "--source", f"{served.url}/{made_of.name}", "--json").json
    assert json.loads(json.dumps(there).replace(f"{served.url}/", f"{tmp_path}/")) == here and here["consistent"]


def test_plan_and_sweep_read_urls(tmp_path: Path) -> None:
    made_of = save(tmp_path / "model.safetensors", {"w": gaussian(64, 256), "v": gaussian(64, 256, seed=3)})
    timed = {"source", "seconds", "weights_per_second"}
    with serving(tmp_path) as served:
        for words in (["plan", "--target-bpw", 6], ["sweep", "--bits", "3,4"]):
            here, there = (
                run(words[0], source, *words[1:], "--json").json for source in (made_of, f"{served.url}/{made_of.name}")
            )
            text = json.dumps(there).replace(f"{served.url}/", f"{tmp_path}/")
            assert _without(json.loads(text), timed) == _without(here, timed)


def _without(value: Any, names: set[str]) -> Any:
    """JSON without the values of some names."""
    if isinstance(value, dict):
        return {k: _without(v, names) for k, v in value.items() if k not in names}
    return [_without(v, names) for v in value] if isinstance(value, list) else value


@given(data=st.data(), size=st.integers(1, 1500), first=st.integers(1, 64), piece=st.integers(64, 300))
def test_any_reads_give_the_bytes_of_the_file_in_bounded_memory(
    data: st.DataObject, size: int, first: int, piece: int
) -> None:
    """Quote: "reads ranges ahead in pieces, several in flight ... and bounds memory"."""
    content = np.random.default_rng(size).bytes(size)
    most = 0

    class Memory:
        def __init__(self) -> None:
            self.size, self.version = size, None

        def fetch(self, start: int, into: memoryview) -> None:
            assert 0 < len(into) <= piece and start + len(into) <= size
            into[:] = content[start : start + len(into)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "FIRST", first)
        patch.setattr(reading, "PIECE", piece)
        patch.setattr(reading, "ROOM", 6 * piece)
        pieces = reading._Pieces()
        patch.setattr(reading, "_PIECES", pieces)
        file = reading.RemoteFile("memory", Memory(), content[:first])
        for _ in range(data.draw(st.integers(1, 10))):
            start = data.draw(st.integers(0, size - 1))
            length = data.draw(st.integers(0, size - start))
            assert file.read(start, length) == content[start : start + length]
            most = max(most, pieces._bytes)
        assert most <= 7 * piece
        file.close()


# ---- few requests -------------------------------------------------------------------------------------------------


def test_reading_a_header_costs_a_few_kilobytes(tmp_path: Path) -> None:
    """Quote: "reading a header costs a few kilobytes"."""
    path = save(tmp_path / "model.safetensors", {f"w{i}": np.zeros((1024, 1024), np.float32) for i in range(8)})
    with serving(tmp_path) as served:
        assert run("inspect", f"{served.url}/model.safetensors").code == 0
    assert path.stat().st_size > 1 << 25
    assert served.sent <= 16384 and len(served.asked_of("model.safetensors")) == 1


def test_what_many_look_at_is_asked_for_once(tmp_path: Path) -> None:
    with serving(made(tmp_path / "model")) as served:
        assert run("quantize", served.url, "-o", tmp_path / "out", "--bits", 4, "-q").code == 0
        assert len(served.asked_of("/model.safetensors.index.json")) == 1
        assert len(served.asked_of("/modules.json")) == 1, "what is not there is asked for once as well"


class _Link:
    """A file of zeros behind a link that answers only while so many bytes are asked for. sent: bytes that were fetched;
    starved: requests that waited in vain for others."""

    def __init__(self, size: int, filled: float = 0) -> None:
        self.size, self.version, self.filled = size, None, filled
        self.sent, self.starved, self.lock = 0, 0, threading.Lock()
        self.waiting = dict[threading.Event, int]()

    def fetch(self, start: int, into: memoryview) -> None:
        own = threading.Event()
        with self.lock:
            self.waiting[own] = len(into)
            at_an_end = start < 8 << 20 or start + reading.ROOM > self.size
            if at_an_end or sum(self.waiting.values()) >= self.filled:
                for event in self.waiting:
                    event.set()
        self.starved += not own.wait(5)
        with self.lock:
            del self.waiting[own]
            self.sent += len(into)


@pytest.mark.parametrize("ahead", [1, 3, 6])
def test_nothing_is_fetched_twice_and_a_link_is_filled(monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    """What was read ahead and not used yet stays, however far ahead of the reader the next request is. Quote: "with 50
    ms latency and 100 MB/s: at least 80 % of the link", which takes 5 MB under way."""
    monkeypatch.setattr(reading, "ROOM", (ahead + 1) * reading.PIECE)
    monkeypatch.setattr(reading, "_PIECES", reading._Pieces())
    link = _Link(64 << 20, filled=5e6)
    file = reading.RemoteFile("link", link)
    for start in range(0, link.size, 2 << 20):
        file.read(start, 2 << 20)
    assert link.sent == link.size and not link.starved


def test_what_is_read_soon_is_fetched_before_it_is_asked_for_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """While an output is begun: no more than is kept beside an upload."""
    monkeypatch.setattr(reading, "_PIECES", reading._Pieces())
    link = _Link(64 << 20)
    file = reading.RemoteFile("link", link)
    file.read(0, 1000)
    file.read_ahead()
    reading.give_way()
    expected, patience = reading.FIRST + reading.BESIDE, time.monotonic() + 20
    while link.sent < expected and time.monotonic() < patience:
        time.sleep(0.01)
    time.sleep(0.05)
    assert link.sent == expected
    for start in range(1000, link.size, 2 << 20):
        file.read(start, min(2 << 20, link.size - start))
    assert link.sent == link.size


def test_headers_of_shards_are_read_many_at_a_time(tmp_path: Path) -> None:
    """Quote: "header of a 300-shard repository listed in 3 s at 50 ms": 15 s one by one."""
    folder, at_once, most, lock = made(tmp_path / "model", 40, 1), 0, 0, threading.Lock()

    def counted(number: int, path: str) -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.05)
        with lock:
            at_once -= 1

    with serving(folder, fault=counted) as served:
        assert run("inspect", served.url).code == 0
        asked = [len(served.asked_of(f"model-{i + 1:05d}-of-00040.safetensors")) for i in range(40)]
    assert asked == [1] * 40 and most >= 16


def test_a_local_run_imports_nothing_of_networks(tmp_path: Path) -> None:
    """Quote: "Nothing of these libraries is imported unless asked for"."""
    path = save(tmp_path / "model.safetensors", {"w": gaussian(8, 128)})
    program = (
        "import sys\nfrom quantcli.cli import main\n"
        f"try: main(['inspect', {str(path)!r}])\n"
        "except SystemExit: pass\n"
        "print(sorted({'http.client', 'ssl', 'socket', 'obstore', 'huggingface_hub', 'fsspec', 'boto3'} "
        "& set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout.endswith("[]\n")


# ---- secrets ------------------------------------------------------------------------------------------------------


def test_a_signature_is_sent_and_never_shown(model: Path, tmp_path: Path) -> None:
    """A signed link has no neighbours: what is refused beside it counts as not there."""
    secret = "X-Amz-Signature=0123456789"
    output, log = tmp_path / "out.safetensors", tmp_path / "log.jsonl"
    with serving(model.parent, query=secret) as served:
        url = f"{served.url}/model.safetensors"
        ran = run("quantize", f"{url}?{secret}", "-o", output, "--log-file", log, "--json")
        refused = run("inspect", f"{url}?X-Amz-Signature=wrong")
        compared = run("compare", f"{url}?{secret}", output, "--json")
        assert not any("json" in path for path, _ in served.log if path.startswith("/model.safetensors/"))
    assert ran.code == compared.code == 0 and ran.json["source"].startswith(f"{url}?")
    assert "no access (403 Forbidden)" in one_line(refused, 1) and "wrong" not in refused.err
    said = ran.out + ran.err + compared.out + compared.err + log.read_text() + output.read_bytes().decode("latin-1")
    assert "0123456789" not in said
    assert output.read_bytes() == quantized(model, tmp_path / "own.safetensors")[""]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://me:secret@host/a.safetensors", "a URL with a password is not read"),
        ("https://me:secret@host:port/a.safetensors", "a URL with a password is not read"),
        ("http://host:port/a.safetensors", "not a valid URL"),
        ("http://[::1/a.safetensors", "not a valid URL"),
        ("https:///a.safetensors", "not a valid URL"),
        ("ftp://host/a.safetensors?secret", "no kind of URL that is read"),
        (
            "https://huggingface.co/org/model",
            "this is a page of the hub, and not a file; name the model as hf://org/mo",
        ),
        ("https://huggingface.co/org/model/blob/main/a.gguf", "not a file; name the model as hf://org/model"),
        ("HTTPS://host/a.safetensors", "no kind of URL that is read; these are: hf://, s3://, gs://, az://, http://"),
        ("hf://datasets/org/model", "only repositories of models are read and written"),
        ("s3://bucket/a//b", "two slashes in a row are not supported in buckets; leave one out"),
    ],
)
def test_urls_that_are_refused(url: str, said: str) -> None:
    ran = run("inspect", url)
    assert said in one_line(ran, 2) and "secret" not in ran.err


def test_outputs_and_files_of_options_are_no_urls(tmp_path: Path) -> None:
    made_of = save(tmp_path / "model.safetensors", {"w": gaussian(8, 128)})
    for option in (["-o", "https://me:secret@host/a?secret"], ["--importance", "https://host/a?secret"]):
        ran = run("quantize", made_of, *option)
        assert "URL" in one_line(ran, 2) and "secret" not in ran.err
    problem = "this must be a file on this machine, not a URL"
    ways = {
        "--importance": "download it, and name the copy",
        "--save-recipe": "name a path, and upload the file from there",
    }
    for name, way in ways.items():
        assert f"{name}: s3://bucket/a: {problem}; {way}\n" in run("quantize", made_of, name, "s3://bucket/a").err
    with pytest.raises(UsageError, match="nothing is written to https") as raised:
        quantcli.quantize_file(str(made_of), "https://me:secret@host/a?secret", bits=4)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("leads", ["http://host/a", "file:///etc/passwd", "https://me:pw@host/a", "https://h:port/"])
def test_where_a_server_may_not_lead(leads: str) -> None:
    with pytest.raises(QuantcliError, match="leads"):
        addresses.led("https://host/model", leads)
    assert addresses.led("https://host/a/model", "../b#c") == "https://host/b"


def test_a_proxy_with_a_password(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(model.parent) as served:
        monkeypatch.setenv("http_proxy", served.url.replace("//", "//me:se%20cret@"))
        monkeypatch.setenv("no_proxy", "")
        assert run("inspect", "http://model.invalid/model.safetensors").code == 0
        sent = served.headers[0]
    assert sent["Host"] == "model.invalid" and sent["Proxy-Authorization"] == "Basic bWU6c2UgY3JldA=="


@pytest.mark.parametrize("proxy", ["http://[::1", "socks5://host:9", "http://host:port", "http://a..b:3"])
def test_proxies_that_are_refused(model: Path, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("no_proxy", "")
    said = one_line(run("inspect", "http://refused.invalid/model.safetensors"), 2)
    assert said.startswith("http_proxy: not the address of a proxy; it has the form http://host:port")


def test_a_proxy_that_does_not_answer_is_named_and_one_that_wants_a_password_not_asked_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    said = one_line(run("inspect", "https://model.invalid/a.safetensors"), 1)
    assert "the proxy 127.0.0.1:9: connection refused, after 3 tries" in said
    with answering(ThreadingHTTPServer(("127.0.0.1", 0), _AskingForAPassword)) as url:
        monkeypatch.setenv("https_proxy", url)
        said = one_line(run("inspect", "https://model.invalid/a.safetensors"), 1)
    assert "asks for a user and a password" in said and "tries" not in said


class _AskingForAPassword(BaseHTTPRequestHandler):
    def do_CONNECT(self) -> None:
        self.send_error(407)

    def log_message(self, *_: object) -> None:
        pass


# ---- faults -------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file of more than one piece: its header, and the rest."""
    (tmp_path / "web").mkdir()
    return save(tmp_path / "web" / "model.safetensors", {"w": gaussian(256, 256)})


def _on(number: int, *wrong: int | bytes):  # type: ignore[no-untyped-def]
    """A fault of the first requests for data behind the header."""
    left = list(wrong)

    def fault(_: int, path: str) -> int | bytes | None:
        return left.pop(0) if path.endswith("model.safetensors") and left and next(asked) >= number else None

    asked = count()
    return fault


@pytest.mark.parametrize(
    "wrong", [(503,), (429, 500), (b"",), (b"HTTP/1.1 206 Partial Content\r\nContent-Le",)], ids=repr
)
def test_a_problem_that_passes_is_waited_for(model: Path, tmp_path: Path, wrong: tuple[int | bytes, ...]) -> None:
    local = quantized(model, tmp_path / "a.safetensors")
    for request in (0, 1):
        with serving(model.parent, fault=_on(request, *wrong)) as served:
            found = quantized(f"{served.url}/model.safetensors", tmp_path / f"{request}.safetensors")
        assert found == local


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ((503,) * 9, "503 Service Unavailable, after 3 tries; try again later"),
        ((b"",) * 9, "the connection ended early, after 3 tries"),
        ((403,), "no access (403 Forbidden)"),
        ((401,), "a login is needed (401 Unauthorized); web servers are sent none: download the file"),
        ((404,), "the file was changed while it was read"),
        ((416,), "the file was changed while it was read"),
        ((418,), "the server answered 418"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_problem_that_stays_is_one_line_and_leaves_nothing(
    model: Path, tmp_path: Path, wrong: tuple[int | bytes, ...], said: str
) -> None:
    with serving(model.parent, fault=_on(1, *wrong)) as served:
        ran = run("quantize", f"{served.url}/model.safetensors", "-o", tmp_path / "out.safetensors", "--quiet")
    assert said in one_line(ran, 1) and served.url in ran.err
    assert {p.name for p in tmp_path.iterdir()} == {"web"}


def test_a_server_that_is_not_there() -> None:
    said = one_line(run("inspect", "http://127.0.0.1:9/model.safetensors"), 1)
    assert "connection refused, after 3 tries" in said


@pytest.mark.parametrize("name", ["a..b", "a" * 70 + ".com"], ids=["empty", "long"])
def test_a_name_that_no_server_has(name: str) -> None:
    assert "cannot be the name of a server" in one_line(run("inspect", f"http://{name}/model.safetensors"), 1)


def test_a_server_that_does_not_speak_https(model: Path) -> None:
    with serving(model.parent) as served:
        said = one_line(run("inspect", served.url.replace("http", "https") + "/model.safetensors"), 1)
    assert "does not speak https; is its address one of http://?" in said


def test_a_certificate_that_nobody_signed(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line names the variable by which it is trusted, and that is true."""
    certificate = _certificate(tmp_path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.chdir(model.parent)
    with answering(server) as url:
        url = url.replace("http", "https") + "/model.safetensors"
        said = one_line(run("inspect", url), 1)
        assert "is not valid: self-signed certificate; SSL_CERT_FILE names a file of the certificates that" in said
        ran = run_process("inspect", url, SSL_CERT_FILE=str(certificate))
    assert ran.code == 0, ran


def _certificate(folder: Path) -> Path:
    """A file with a certificate for 127.0.0.1, signed by itself, and its key."""
    from datetime import datetime, timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([]), datetime.now()
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - timedelta(2))
    made = made.not_valid_after(now + timedelta(2))
    own = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    signed = made.add_extension(own, critical=True).sign(key, hashes.SHA256())
    plain = serialization.NoEncryption()
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    path = folder / "certificate.pem"
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM) + secret)
    return path


_LOGIN = b"\n<!DOCTYPE html>\n<html><body>Please log in</body></html>"
_PAGE = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: %d\r\n\r\n%b" % (
    len(_LOGIN),
    _LOGIN,
)


def test_a_web_page_is_not_the_file_that_it_stands_for(tmp_path: Path) -> None:
    """A server may answer 200 with a page to log in, for what it has and for what it does not have: neither is taken
    for a file, and no page is copied as a tokenizer."""
    folder = made(tmp_path / "model")
    with serving(folder, fault=lambda number, path: _PAGE) as served:
        for name in ("", "/model.safetensors", "/a.onnx", "/model.safetensors.index.json", "/model.gguf"):
            said = one_line(run("inspect", served.url + name), 1)
            assert f"{served.url}{name}: the server sends a web page instead of the file; a login may" in said
    local = quantized(folder, tmp_path / "local")
    with serving(folder, fault=lambda number, path: None if (folder / path[1:]).is_file() else _PAGE) as served:
        found = quantized(served.url, tmp_path / "remote")
    assert set(found) <= set(local) and not any(b"Please log in" in content for content in found.values())


def test_a_server_that_leads_to_where_nothing_is_given(model: Path) -> None:
    """Only a link that was good once may have expired: others are not asked for again."""

    def fault(number: int, path: str) -> int | bytes:
        return (
            403 if path == "/elsewhere" else b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"
        )

    with serving(model.parent, fault=fault) as served:
        said = one_line(run("inspect", f"{served.url}/model.safetensors"), 1)
        asked = [path for path, _ in served.log].count("/elsewhere")
    assert "no access (403 Forbidden)" in said and asked <= 2


def test_a_folder_that_is_a_whole_server_has_the_name_of_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with serving(made(tmp_path / "model")) as served:
        assert run("quantize", served.url, "--bits", 4, "-q").code == 0
    assert [path.name for path in here.iterdir()] == ["127.0.0.1-w4g128"]
    assert {path.name for path in tmp_path.iterdir()} == {"here", "model"}


def test_a_server_without_ranges(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files are taken whole; of others the server is said to have none."""
    http = pytest.importorskip("quantcli.stores.remote.http")
    with serving(model.parent, ranges=False) as served:
        found = quantized(f"{served.url}/model.safetensors", tmp_path / "a.safetensors")
        assert found == quantized(model, tmp_path / "b.safetensors")
        monkeypatch.setattr(http, "_SMALL", 1000)
        said = one_line(run("inspect", f"{served.url}/model.safetensors"), 1)
    assert "whole files only (it does not honour ranges); download the file first" in said or "does not honour" in said


def test_a_file_that_comes_in_chunks_or_compressed(model: Path, tmp_path: Path) -> None:
    (model.parent / "empty.safetensors").touch()
    with serving(model.parent, chunked=True, ranges=False) as served:
        found = quantized(f"{served.url}/model.safetensors", tmp_path / "a.safetensors")
        assert found == quantized(model, tmp_path / "b.safetensors")
        assert "0 bytes" in one_line(run("inspect", f"{served.url}/empty.safetensors"), 1)
    with serving(model.parent, coding="gzip") as served:
        assert "compressed (gzip); download the file, and name the copy" in one_line(
            run("inspect", f"{served.url}/model.safetensors"), 1
        )


def test_a_side_file_that_cannot_be_had_is_not_left_out(tmp_path: Path) -> None:
    def fault(number: int, path: str) -> int | None:
        return 500 if path.endswith("tokenizer_config.json") else None

    with serving(made(tmp_path / "model"), fault=fault) as served:
        ran = run("quantize", served.url, "-o", tmp_path / "out")
    assert "tokenizer_config.json: 500 Internal Server Error, after 3 tries" in one_line(ran, 1)


@pytest.mark.parametrize("told", [lambda size: size + 4096, lambda size: size - 4096], ids=["more", "less"])
def test_a_server_that_lies_about_sizes(model: Path, told: object) -> None:
    with serving(model.parent, size=told) as served:
        said = one_line(run("inspect", f"{served.url}/model.safetensors"), 1)
    assert "bytes, " in said or "cut short" in said


def test_a_file_that_changes_midway(model: Path, tmp_path: Path) -> None:
    def fault(number: int, path: str) -> None:
        if len(served.log) == 4:
            save(model, {"w": gaussian(256, 256, seed=9)})

    with serving(model.parent, fault=fault) as served:
        ran = run("quantize", f"{served.url}/model.safetensors", "-o", tmp_path / "out.safetensors")
    assert ran.code == 1 and "the file was changed while it was read" in ran.err
    assert not (tmp_path / "out.safetensors").exists()


def test_an_object_that_changes_midway(s3: object) -> None:
    s3.put_object(Bucket="models", Key="one.safetensors", Body=bytes(1 << 16))  # type: ignore[attr-defined]
    file = places.opened("s3://models/one.safetensors")
    s3.put_object(Bucket="models", Key="one.safetensors", Body=bytes(range(256)) * 256)  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="the file was changed while it was read"):
        file.read(1 << 15, 100)


def test_a_link_that_was_signed_and_expires_is_asked_for_again(hub: Served, tmp_path: Path) -> None:
    """Quote: "credentials that expire midway"."""
    assert hub.hub is not None
    used = dict[str, int]()

    def fault(number: int, path: str) -> int | None:
        used[path] = used.get(path, 0) + 1
        return 403 if path.startswith("/signed/") and used[path] == 2 else None

    hub.fault = fault
    local = quantized(hub.folder, tmp_path / "local")
    assert quantized(f"hf://{hub.hub.repo}", tmp_path / "remote") == local
    assert max(n for path, n in used.items() if path.startswith("/signed/")) > 2


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("hf://org/none", "no such repository, or no access to it"),
        ("hf://{}@v9", "no such revision in this repository"),
        ("hf://{}/none.safetensors", "no such file or folder"),
        ("hf://org", "not the URL of a model on the hub"),
        ("hf://", "it names nothing"),
    ],
)
def test_what_the_hub_does_not_have(hub: Served, url: str, said: str) -> None:
    assert hub.hub is not None
    ran = run("inspect", url.format(hub.hub.repo))
    assert said in one_line(ran, ran.code) and ran.code in (1, 2)


def test_a_commit_is_read_by_a_process_that_has_asked_the_hub_for_nothing(hub: Served) -> None:
    """Quote: "the commit pinned and recorded as provenance": the URL that reports name is read as it stands."""
    assert hub.hub is not None
    ran = run_process("inspect", f"hf://{hub.hub.repo}@{COMMIT}", HF_ENDPOINT=hub.url)
    assert ran.code == 0 and ran.out.startswith(f"hf://{hub.hub.repo}@{COMMIT}: "), ran


def test_a_repository_that_was_renamed_is_named_as_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    folder = made(tmp_path / "model")
    leads = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n"

    def fault(number: int, path: str) -> bytes | None:
        return leads % path.replace("old/name", "new/name").encode() if "old/name" in path else None

    with serving(folder, hub=Hub(repo="new/name"), fault=fault) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        ran = run("inspect", "hf://old/name")
    assert ran.out.startswith(f"hf://new/name@{COMMIT}: ")


@pytest.mark.parametrize(
    ("endpoint", "token", "said"),
    [
        ("host:8000", "", "HF_ENDPOINT is no address: host:8000; use https://host"),
        ("http://127.0.0.1:9", "", "http://127.0.0.1:9 cannot be reached (ConnectError), after 3 tries"),
        (None, "hf_\u00e9", "HF_TOKEN has characters that no token has; copy it once more"),
        (None, "", "does not answer as a hub; a page to log in may be in the way; check HF_ENDPOINT"),
    ],
    ids=["no scheme", "nobody", "token", "page"],
)
def test_hubs_that_are_none(
    hub: Served, monkeypatch: pytest.MonkeyPatch, endpoint: str | None, token: str, said: str
) -> None:
    assert hub.hub is not None
    hub.fault = lambda number, path: _PAGE
    if endpoint is not None:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setenv("HF_TOKEN", token)
    ran = run("inspect", f"hf://{hub.hub.repo}")
    assert said in one_line(ran, ran.code) and ran.code in (1, 2)


def test_a_branch_with_a_slash(hub: Served) -> None:
    assert hub.hub is not None
    hub.hub.revisions["feature/x"] = OLD
    said = one_line(run("inspect", f"hf://{hub.hub.repo}@feature/x"), 1)
    assert "no such revision in this repository" in said and said.endswith("a slash in its name is written %2F")
    assert f"@{OLD}: " in run("inspect", f"hf://{hub.hub.repo}@feature%2Fx").out


def test_a_token_is_sent_to_the_hub_and_to_nobody_else(hub: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.hub is not None
    hub.hub.token = "hf_secret"
    assert "set HF_TOKEN or log in" in one_line(run("inspect", f"hf://{hub.hub.repo}"), 1)
    hub.hub.gated = True
    assert "access to this repository is gated" in one_line(run("inspect", f"hf://{hub.hub.repo}"), 1)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert run("inspect", f"hf://{hub.hub.repo}").code == 0
    signed = [h for (path, _), h in zip(hub.log, hub.headers) if path.startswith("/signed/")]
    assert signed and not any("hf_secret" in str(headers) for headers in signed)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://no-such-bucket/model", "s3://no-such-bucket/model: no such bucket"),
        ("s3://no-such-bucket/a.safetensors", "s3://no-such-bucket/a.safetensors: no such bucket"),
        ("s3://models/none/model.safetensors", "no such file or folder"),
        ("s3://", "it names nothing"),
    ],
)
def test_what_a_bucket_does_not_have(s3: object, url: str, said: str) -> None:
    ran = run("inspect", url)
    assert said in one_line(ran, ran.code) and ran.code in (1, 2)


@pytest.mark.parametrize(
    ("url", "module", "extra"), [("hf://org/model", "huggingface_hub", "hub"), ("s3://bucket/key", "obstore", "cloud")]
)
def test_a_missing_extra_is_named(url: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    said = one_line(run("inspect", url), 2)
    assert said == f"{url}: {url[:2]}:// needs {module}; install it with: pip install 'quantcli[{extra}]'" or (
        f"needs {module}; install it with: pip install 'quantcli[{extra}]'" in said
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_an_interrupted_run_ends_at_once_and_leaves_nothing(model: Path, tmp_path: Path, threads: int) -> None:
    asked = threading.Event()

    def slow(number: int, path: str) -> None:
        if number > 3:  # behind the header and what is looked for beside it
            asked.set()
            time.sleep(20)

    with serving(model.parent, fault=slow) as served:
        words = command("quantize", f"{served.url}/model.safetensors", "-o", tmp_path / "out", "--threads", threads)
        run = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), text=True)
        assert asked.wait(60)
        time.sleep(0.2)
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=15)
    assert run.returncode == -signal.SIGINT and "Traceback" not in err
    assert {p.name for p in tmp_path.iterdir()} == {"web"}


def test_nothing_is_written_to_web_servers_and_unknown_kinds_of_urls(tmp_path: Path) -> None:
    path = save(tmp_path / "model.safetensors", {"w": gaussian(8, 128)})
    for scheme in ("https", "ftp"):
        said = one_line(run("quantize", path, "-o", f"{scheme}://host/model"), 2)
        assert f"nothing is written to {scheme}://" in said


def test_an_endpoint_that_is_not_there_is_named(s3: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "model.safetensors", {"w": gaussian(8, 128)})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    said = one_line(run("quantize", path, "-o", "s3://models/w8.safetensors"), 1)
    assert "http://127.0.0.1:1 cannot be reached" in said and "check the network and AWS_ENDPOINT_URL" in said


def test_a_read_that_waits_ends_with_the_run() -> None:
    class Slow:
        size, version = 1 << 20, None

        def fetch(self, start: int, into: memoryview) -> None:
            time.sleep(1)

    file = reading.RemoteFile("slow", Slow())
    threading.Timer(0.1, file.interrupt).start()
    with pytest.raises(QuantcliError, match="cancelled"):
        file.read(0, 100)


class _Counting:
    """A file of zeros in memory that records what is asked of it."""

    def __init__(self, size: int) -> None:
        self.size, self.version = size, None
        self.asked: list[int] = []

    def fetch(self, start: int, into: memoryview) -> None:
        self.asked.append(start)


def test_reading_ahead_goes_on_in_the_file_that_follows() -> None:
    """Quote: "reads ranges ahead": a link is not idle between shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_PIECES", reading._Pieces())
        first, second = _Counting(5 * reading.PIECE), _Counting(5 * reading.PIECE)
        files = [reading.RemoteFile(f"memory {n}", t) for n, t in enumerate((first, second))]
        files[0].precedes(files[1])
        assert files[1].read(0, 100) == bytes(100)  # its header, as when a model is opened
        before = len(second.asked)
        for at in range(0, first.size, reading.PIECE // 4):
            files[0].read(at, reading.PIECE // 4)
        deadline = time.monotonic() + 10
        while len(second.asked) == before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(second.asked) > before


@pytest.mark.parametrize("in_file", [False, True])
def test_a_token_that_was_renewed_is_sent_and_one_that_expired_is_one_line(
    hub: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_file: bool
) -> None:
    """Quote: "credentials that expire midway": a new token of the same login goes on, else --resume does."""
    assert hub.hub is not None
    hub.hub.token, hub.hub.redirect = "hf_old", False

    def log_in(token: str) -> None:
        if in_file:
            (tmp_path / "no-token").write_text(token)
        else:
            monkeypatch.setenv("HF_TOKEN", token)

    log_in("hf_old")
    local = quantized(hub.folder, tmp_path / "local")
    url, renewed = f"hf://{hub.hub.repo}", True

    def fault(number: int, path: str) -> None:
        # The headers of four shards have been read, and the weights of the first asked for, maybe before side files.
        asked = [p for p, _ in hub.log if p.endswith(".safetensors")]
        if len(asked) == 6 and hub.hub is not None and hub.hub.token == "hf_old":
            hub.hub.token = "hf_new"
            if renewed:
                log_in("hf_new")

    hub.fault = fault
    assert quantized(url, tmp_path / "remote") == local
    assert hub.hub.token == "hf_new"
    hub.log.clear()
    hub.hub.token, renewed = "hf_old", False
    log_in("hf_old")
    ran = run("quantize", url, "-o", tmp_path / "out", "--bits", 4, "--quiet")
    assert ran.code == 1 and "the token has expired or was withdrawn; log in again" in ran.err
    assert "hf_" not in ran.err and not (tmp_path / "out").exists()
    log_in("hf_new")
    assert quantized(url, tmp_path / "out", "--resume") == local


@pytest.fixture
def refusing(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, str], None]]:
    """A bucket `web` that answers with a status and a code once the header of its file was read."""
    pytest.importorskip("obstore")
    with serving(model.parent.parent) as served:
        for name, value in {"ENDPOINT_URL": served.url, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_REGION", "us-east-1")

        def begin(status: int, code: str) -> None:
            said = f"<Error><Code>{code}</Code><Message>The provided token is no token.</Message></Error>".encode()
            head = (
                f"HTTP/1.1 {status} Forbidden\r\nContent-Type: application/xml\r\nContent-Length: {len(said)}\r\n\r\n"
            )
            served.fault = _on(1, *[head.encode() + said] * 9)

        yield begin


@pytest.mark.parametrize(
    ("status", "code", "said", "hint"),
    [
        (403, "ExpiredToken", "the credentials have expired", "renew them and run again"),
        (400, "ExpiredToken", "the credentials have expired", "renew them and run again"),
        (403, "RequestTimeTooSkewed", "the clock of this machine is wrong", "set it and run again"),
        (
            403,
            "SignatureDoesNotMatch",
            "the bucket does not know these credentials",
            "check AWS_ACCESS_KEY_ID, AWS_SEC",
        ),
        (301, "PermanentRedirect", "no S3 server answers, or not that of this bucket", "check AWS_ENDPOINT_URL and"),
        (403, "AccessDenied", "no access with these credentials", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_keys_of_a_bucket_that_expire_midway(
    refusing: Callable[[int, str], None], status: int, code: str, said: str, hint: str
) -> None:
    """Quote: "credentials that expire midway": in one line, and by what is wrong with them."""
    refusing(status, code)
    file = places.opened("s3://web/model.safetensors")
    with pytest.raises(QuantcliError, match=said) as raised:
        file.read(0, file.size)
    assert raised.value.hint is not None and raised.value.hint.startswith(hint)


@pytest.mark.parametrize("output", [False, True])
def test_an_endpoint_that_is_no_address(
    s3: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: bool
) -> None:
    """The library under it would end with a trace of Rust."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9000")
    local = save(tmp_path / "model.safetensors", {"w": gaussian(8, 128)})
    words = ("quantize", local, "-o", "s3://models/a.safetensors") if output else ("inspect", "s3://models/a")
    said = one_line(run(*words), 2)
    assert said == "AWS_ENDPOINT_URL: 127.0.0.1:9000 is not the address of a server; use https://host"


@pytest.mark.parametrize("output", ["folder", "s3://models/hints", "gs://models/hints"])
def test_resume_is_named_only_where_it_goes_on(
    s3: Any, hub: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    """Quote: "one line each, `--resume` goes on": the run says so once files are finished that it goes on after."""
    assert hub.hub is not None
    last = "model-00004-of-00004.safetensors"
    asked = count()
    hub.fault = lambda number, path: 503 if path.endswith(last) and next(asked) > 1 else None
    with monkeypatch.context() as patch:
        if output.startswith("gs"):
            from obstore.store import MemoryStore

            from quantcli.stores.remote import cloud

            kept = MemoryStore()
            patch.setattr(cloud.STORE, "bucket", lambda url: (kept, cloud.split(url)[1]))
        target = str(tmp_path / output) if output == "folder" else output
        ran = run("quantize", f"hf://{hub.hub.repo}", "-o", target, "--bits", 4, "--quiet")
        assert ran.code == 1 and "503 Service Unavailable, after 3 tries; try again later" in ran.err
        assert ("with --resume to continue" in ran.err) == (not output.startswith("gs"))
    left = s3.list_objects_v2(Bucket="models", Prefix=".hints").get("Contents", ())
    for one in left:
        s3.delete_object(Bucket="models", Key=one["Key"])


def test_ctrl_c_while_headers_are_read(tmp_path: Path) -> None:
    """It waits for none of the requests that are under way."""
    asked = threading.Event()

    def slow(number: int, path: str) -> None:
        if path.endswith(".safetensors"):
            asked.set()
            time.sleep(20)

    with serving(made(tmp_path / "web", 8, 1), fault=slow) as served:
        words = command("inspect", f"{served.url}/model.safetensors.index.json")
        process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), text=True)
        assert asked.wait(60)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=15)
    assert (process.returncode, out, err) == (-signal.SIGINT, "", "")


def test_an_azure_url_without_an_account_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    line = one_line(run("inspect", "az://container/model"), 2)
    assert "no storage account is named; set AZURE_STORAGE_ACCOUNT_NAME" in line
