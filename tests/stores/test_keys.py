"""Keys for S3 that are renewed while a run goes on, from every place in which botocore finds such keys."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import unquote

import pytest
from checkpoints import contents, made
from disk_s3 import Handler, Server
from making import command, environment, one_line, run
from remote_parts import answering

pytest.importorskip("obstore")
pytest.importorskip("botocore")

LIFE, GRACE = 12, 8
"""Requests after which keys are replaced by new ones, and those that are taken with the old ones after that."""


@dataclass
class Issued:
    """The keys that are valid. renewed: called with the number of new ones; last: the number of the last ones there
    will be; refused: requests with keys that had expired."""

    renewed: Callable[[int], None] = lambda number: None
    number: int = 1
    last: int = 1 << 30
    uses: int = 0
    refused: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def accepts(self, key: str, token: str) -> bool:
        """Whether a request is signed by valid keys."""
        with self.lock:
            if key != f"KEY{token.removeprefix('token')}":
                return False
            self.uses += 1
            if self.uses >= LIFE and self.number < self.last:
                self.number, self.uses = self.number + 1, 0
                self.renewed(self.number)
            old = key == f"KEY{self.number - 1}" and self.uses < GRACE
            expired = not old and (key != f"KEY{self.number}" or (self.number == self.last and self.uses > LIFE))
            self.refused += expired
            return not expired


class _Handler(Handler):
    """Hands out keys as a container and as AWS STS do, and refuses requests with those that have expired."""

    server: _Server

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        issued, valid = self.server.issued, datetime.now(timezone.utc) + timedelta(minutes=5)
        named = {"AccessKeyId": f"KEY{issued.number}", "SecretAccessKey": "secret", "Expiration": valid.isoformat()}
        if self.path == "/credentials":
            self._answer(200, json.dumps({**named, "Token": f"token{issued.number}"}).encode())
            return False
        if self.path == "/":
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            action = re.findall(r"Action=(\w+)", body)[0]
            assert action == "AssumeRole" or "WebIdentityToken=identity" in body
            inner = "".join(f"<{n}>{v}</{n}>" for n, v in {**named, "SessionToken": f"token{issued.number}"}.items())
            result = f"<{action}Result><Credentials>{inner}</Credentials></{action}Result>"
            self._answer(200, f"<{action}Response>{result}</{action}Response>".encode())
            return False
        said = unquote(self.headers.get("Authorization") or self.path)
        key = re.search(r"Credential=(\w+)/", said)
        token = self.headers.get("x-amz-security-token") or "".join(re.findall(r"Security-Token=(\w+)", said))
        if key is None or not issued.accepts(key[1], token):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._refuse(400, "ExpiredToken")
            return False
        return True


class _Server(Server):
    issued: Issued


@pytest.fixture
def issued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Issued]:
    """The keys of a server with a bucket `models`, in which a model `float` of eight shards lies."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    (tmp_path / "s3" / "models").mkdir(parents=True)
    made(tmp_path / "s3" / "models" / "float", 8, 4)
    server = _Server(tmp_path / "s3", "127.0.0.1", 0, _Handler)
    server.issued = Issued()
    with answering(server) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        yield server.issued


def _in_file(path: Path) -> Callable[[int], None]:
    def written(number: int) -> None:
        lines = [
            f"aws_access_key_id = KEY{number}",
            "aws_secret_access_key = secret",
            f"aws_session_token = token{number}",
        ]
        path.write_text("\n".join(["[default]", *lines]))

    return written


def _from(kind: str, issued: Issued, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the keys come from where a name says."""
    url, role = os.environ["AWS_ENDPOINT_URL"], "arn:aws:iam::123456789012:role/reader"
    if kind in ("credentials", "config"):
        issued.renewed = _in_file(folder / kind)
        issued.renewed(1)
    elif kind == "container":
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}/credentials")
    elif kind == "web identity":
        (folder / "identity").write_text("identity")
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(folder / "identity"))
        monkeypatch.setenv("AWS_ROLE_ARN", role)
    elif kind == "role":
        (folder / "config").write_text(f"[profile reader]\nrole_arn = {role}\nsource_profile = own\n")
        (folder / "credentials").write_text("[own]\naws_access_key_id = OWN\naws_secret_access_key = secret\n")
        monkeypatch.setenv("AWS_PROFILE", "reader")


@pytest.mark.parametrize("kind", ["credentials", "config", "container", "web identity", "role"])
def test_a_run_goes_on_with_keys_that_were_renewed(
    kind: str, issued: Issued, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quote: "credentials that expire midway"."""
    _from(kind, issued, tmp_path, monkeypatch)
    local = made(tmp_path / "float", 8, 4)
    assert run("quantize", local, "--bits", 4, "-q", "-o", tmp_path / "local").code == 0
    ran = run("quantize", "s3://models/float", "--bits", 4, "-q", "-o", "s3://models/w4")
    assert ran.code == 0, ran.err
    assert issued.number > 5
    ran = run("quantize", "s3://models/float", "--bits", 4, "-q", "-o", tmp_path / "remote")
    assert ran.code == 0, ran.err
    without_card = {n: c for n, c in contents(tmp_path / "local").items() if n != "README.md"}
    assert {n: c for n, c in contents(tmp_path / "remote").items() if n != "README.md"} == without_card


def test_keys_that_are_not_renewed_are_one_line_and_resume_goes_on_with_new_ones(
    issued: Issued, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quote: "credentials that expire midway: one line, nothing half-written that looks whole". Keys that are half
    written do no harm either."""
    _from("credentials", issued, tmp_path, monkeypatch)
    write = issued.renewed

    def renewed(number: int) -> None:
        write(number)
        if number == 2:
            (tmp_path / "credentials").write_text("[default]\naws_access_key_id = KEY2\n")
            threading.Timer(0.05, lambda: write(2)).start()

    issued.renewed, issued.last = renewed, 3
    words = ("quantize", "s3://models/float", "--bits", 4, "-q", "-o", "s3://models/w4")
    # A process of its own, whose lock is given up where it has ended: nothing can be deleted with keys that expired.
    ran = subprocess.run(command(*words), env=environment(), capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1 and issued.number == 3
    assert "the credentials have expired; renew them and run again" in ran.stderr and "Traceback" not in ran.stderr
    held = tmp_path / "s3" / "models"
    assert not [path.name for path in held.iterdir() if path.name.startswith("w4%2F")]
    issued.last = 1 << 30
    assert run(*words, "--resume").code == 0
    assert "w4%2Fconfig.json" in [path.name for path in held.iterdir()]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (
            "AWS_PROFILE",
            "nobody",
            "the settings for AWS cannot be used: The config profile (nobody) could not be found",
        ),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/nowhere", "the settings for AWS cannot be used: "),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:1/", "the settings for AWS cannot be used: "),
        ("AWS_CONFIG_FILE", "broken", "the settings for AWS cannot be used: Unable to parse config file: broken"),
        ("AWS_EC2_METADATA_DISABLED", "true", "no credentials were found"),
    ],
)
def test_credentials_that_cannot_be_had_are_one_line(
    name: str, value: str, says: str, issued: Issued, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To read, and to write."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken").write_text("no section")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/reader")
    monkeypatch.setenv(name, value)
    local = made(tmp_path / "float", 2, 1)
    for words in (("inspect", "s3://models/float"), ("quantize", local, "--bits", 4, "-q", "-o", "s3://models/w4")):
        said = one_line(run(*words), 1)
        assert said.startswith("s3://models/") and says in said
