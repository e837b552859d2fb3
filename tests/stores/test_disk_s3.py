"""Figures of models in a bucket, against a server of S3 that costs quantcli nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import made
from disk_s3 import Handler, Server, disk_server
from making import command, environment, measured, save
from remote_parts import answering

from quantcli.errors import QuantcliError
from quantcli.stores import places
from quantcli.stores.remote import object_writing

pytest.importorskip("obstore")
pytest.importorskip("botocore")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a bucket `models`, which holds `one.safetensors` of 96 MiB."""
    folder = tmp_path / "s3" / "models"
    folder.mkdir(parents=True)
    weights = np.random.default_rng(0).standard_normal((2048, 4096)).astype(np.float16)
    save(folder / "one.safetensors", {f"layers.{n}.weight": weights for n in range(6)})
    save(tmp_path / "one.safetensors", {f"layers.{n}.weight": weights for n in range(6)})
    with disk_server(folder.parent) as named:
        for name, value in named.items():
            monkeypatch.setenv(name, value)
        yield folder


def test_memory_from_a_bucket_to_a_bucket_and_to_a_disk(models: Path, tmp_path: Path) -> None:
    """Quote: "1 GB from the loopback S3 server to it: ... memory 128 MiB or less". 96 MiB fill all that is bounded:
    pieces that are read ahead, parts on their way. The bytes are those of a local run."""
    local, bucket = tmp_path / "w8.safetensors", "s3://models/w8.safetensors"
    measured("quantize", tmp_path / "one.safetensors", "--bits", "8", "-q", "-o", local)
    for target in (bucket, str(tmp_path / "from-s3.safetensors")):
        _, most = measured("quantize", "s3://models/one.safetensors", "--bits", "8", "-q", "-o", target)
        assert most <= 128
    assert (models / "w8.safetensors").read_bytes() == local.read_bytes()
    assert (tmp_path / "from-s3.safetensors").read_bytes() == local.read_bytes()


def test_a_server_that_refuses_signed_links_is_read_all_the_same(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rights may be for signed requests alone; every range would be asked for twice, so that links are given up."""
    import obstore

    asked = []

    def refused(store: object, method: str, key: str, valid: object) -> str:
        asked.append(key)
        return f"{os.environ['AWS_ENDPOINT_URL']}/models/not-there?X-Amz-Signature=0"

    monkeypatch.setattr(obstore, "sign", refused)
    file, content = places.opened("s3://models/one.safetensors"), (tmp_path / "one.safetensors").read_bytes()
    for at in (5 << 20, 60 << 20, 20 << 20):
        assert file.read(at, 100_000) == content[at : at + 100_000]
    assert len(asked) == 1


def test_links_are_used_again_after_a_server_was_busy(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 503 passes. The rest of the file was read through streams, which take three times the processor time."""
    import obstore

    asked: list[str] = []

    class Busy(BaseHTTPRequestHandler):
        """Refuses the first range, and takes all others from the server behind it."""

        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(self.headers["Range"])
            if len(asked) == 1:
                self.send_response(503)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            behind = urllib.request.Request(
                os.environ["AWS_ENDPOINT_URL"] + self.path, headers={"Range": self.headers["Range"]}
            )
            with urllib.request.urlopen(behind) as found:
                self.send_response(found.status)
                for name in ("ETag", "Content-Range", "Content-Length"):
                    self.send_header(name, found.headers[name])
                self.end_headers()
                self.wfile.write(found.read())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address, sign = f"http://127.0.0.1:{server.server_address[1]}", obstore.sign

        def signed(*given: Any) -> str:
            return address + str(sign(*given)).removeprefix(os.environ["AWS_ENDPOINT_URL"])

        monkeypatch.setattr(obstore, "sign", signed)
        file, content = places.opened("s3://models/one.safetensors"), (tmp_path / "one.safetensors").read_bytes()
        starts = (5 << 20, 60 << 20, 20 << 20, 80 << 20)
        for at in starts:
            assert file.read(at, 100_000) == content[at : at + 100_000]
        server.shutdown()
    assert {f"bytes={at}-{at + 99_999}" for at in starts} <= {*asked}


def test_a_lock_that_may_not_be_deleted_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore

    def denied(store: object, key: str) -> None:
        raise obstore.exceptions.PermissionDeniedError("403 Forbidden")

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key")
    monkeypatch.setattr(obstore, "delete", denied)
    with pytest.raises(QuantcliError, match="no access with these credentials"):
        object_writing._Cells().delete(["s3://bucket/lock"])


def test_a_signal_once_all_files_have_their_names_leaves_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hidden folder stayed, with all files twice, and --resume, which the run named, refused the output."""
    begun = list[subprocess.Popen[str]]()

    class Ending(Handler):
        """Ends the run that says that all files have their names."""

        def do_DELETE(self) -> None:  # noqa: N802
            super().do_DELETE()
            if "/publishing" in self.path and begun[0].poll() is None and not ended:
                ended.append(self.path)
                begun[0].send_signal(signal.SIGTERM)

        def do_GET(self) -> None:  # noqa: N802
            if ended and "list-type" in self.path:
                time.sleep(0.3)  # the list of what is left
            super().do_GET()

    ended = list[str]()
    (tmp_path / "s3" / "models").mkdir(parents=True)
    with answering(Server(tmp_path / "s3", "127.0.0.1", 0, Ending)) as url:
        for name, value in {"ENDPOINT_URL": url, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        words = command("quantize", made(tmp_path / "float"), "--bits", 4, "-q", "-o", "s3://models/w4")
        begun.append(subprocess.Popen(words, stderr=subprocess.PIPE, env=environment(), text=True))
        said = begun[0].communicate(timeout=120)[1]
    left = {path.name for path in (tmp_path / "s3" / "models").iterdir()}
    assert ended and "--resume" not in said, (said, begun[0].returncode)
    assert "w4%2Fconfig.json" in left and not [name for name in left if name.startswith(".w4")]
