"""Statements about models behind URLs: those of the same files on a disk, and the models made again from there."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from checkpoints import contents, made
from making import one_line, run, save
from remote_parts import COMMIT, OLD, Hub, Served, s3_server, serving
from strategies import gaussian

from quantcli.folders import attest
from quantcli.stores import remote

_numbers = count()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A hub of one repository, of another name for each test: lists are believed for a minute."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    folder = made(tmp_path / "model")
    (folder / ".gitattributes").write_text("hidden")
    (folder / "model.sig").write_text("a signature")
    with serving(folder, hub=Hub(repo=f"org/attested-{next(_numbers)}")) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        yield served


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of a server with an empty bucket `models`."""
    with s3_server() as (client, url):
        client.create_bucket(Bucket="models")
        settings = {"ENDPOINT_URL": url, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}
        for name, value in settings.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        remote.forget()
        yield client


def put(client: Any, folder: Path, key: str) -> None:
    for name, content in contents(folder).items():
        client.put_object(Bucket="models", Key=f"{key}/{name}", Body=content)


def test_a_statement_of_urls_is_that_of_the_files_on_a_disk_and_makes_the_model_again(
    hub: Served, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source on the hub, as a snapshot in the cache of the hub's own library, and in a bucket; the model in a
    folder and in a bucket, beside a signature, the statement and hidden files."""
    assert hub.hub is not None
    monkeypatch.chdir(tmp_path)
    url = f"hf://{hub.hub.repo}"
    snapshot = tmp_path / f"models--{hub.hub.repo.replace('/', '--')}" / "snapshots" / COMMIT
    shutil.copytree(hub.folder, snapshot)
    assert run("quantize", url, "--bits", 4, "-o", "w4", "-q").code == 0
    text = run("attest", "w4", "--source", snapshot, "-q").out
    found = json.loads(text)["predicate"]["buildDefinition"]["resolvedDependencies"]
    origin = {"name": "source", "uri": f"pkg:huggingface/{hub.hub.repo}@{COMMIT}", "digest": {"gitCommit": COMMIT}}
    assert found[0] == origin
    by_hand = {n: hashlib.sha256(c).hexdigest() for n, c in contents(hub.folder).items()}
    del by_hand[".gitattributes"], by_hand["model.sig"]
    assert {f["name"]: f["digest"]["sha256"] for f in found[1:]} == by_hand

    (tmp_path / "w4" / "model.intoto.json").write_text(text)
    (tmp_path / "w4" / "model.sig").write_text("a signature")
    (tmp_path / "w4" / ".hidden").mkdir()
    (tmp_path / "w4" / ".hidden" / "file").write_text("x")
    put(s3, tmp_path / "w4", "w4")
    put(s3, hub.folder, "base")
    for model, source in (("w4", url), ("s3://models/w4", url), ("s3://models/w4", snapshot)):
        assert run("attest", model, "--source", source, "-q", "--threads", 3).out == text
    elsewhere = json.loads(run("attest", "s3://models/w4", "--source", "s3://models/base", "-q").out)
    build = elsewhere["predicate"]["buildDefinition"]
    assert build["resolvedDependencies"] == found[1:] and "source" not in build["externalParameters"]

    statement = "s3://models/w4/model.intoto.json"
    ran = run("verify", "s3://models/w4", "--statement", statement, "--source", url)
    assert ran.code == 0 and "statement, source, bytes" in ran.out, ran
    s3.put_object(Bucket="models", Key="w4/tokenizer.json", Body=b"{ }")
    s3.put_object(Bucket="models", Key="w4/new.txt", Body=b"x")
    s3.delete_object(Bucket="models", Key="w4/config.json")
    remote.forget()
    ran = run("verify", "s3://models/w4", "--statement", statement, "--json")
    problems = {f["tensor"]: f["problem"] for f in ran.json["findings"]}
    assert ran.code == 1 and set(problems) == {"tokenizer.json", "new.txt", "config.json"}, problems


def test_the_commit_of_a_revision_is_recorded_and_a_single_file_named(hub: Served, tmp_path: Path) -> None:
    assert hub.hub is not None
    shard = "model-00002-of-00004.safetensors"
    url = f"hf://{hub.hub.repo}@v1/{shard}"
    assert run("quantize", url, "--bits", 4, "-o", tmp_path / "q.safetensors", "-q").code == 0
    build = json.loads(run("attest", tmp_path / "q.safetensors", "--source", url, "-q").out)["predicate"]
    first, *files = build["buildDefinition"]["resolvedDependencies"]
    assert first["digest"] == {"gitCommit": OLD} and [f["name"] for f in files] == [shard]


def test_files_of_a_web_server_are_read_and_its_folders_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = save(tmp_path / "a.safetensors", {"x": gaussian(64, 128, seed=1)})
    assert run("quantize", source, "--bits", 4, "-o", "q.safetensors", "-q").code == 0
    text = run("attest", "q.safetensors", "--source", source, "-q").out
    Path("s.json").write_text(text)
    made(tmp_path / "folder")
    with serving(tmp_path, query="key=secret") as served:
        model, there = f"{served.url}/q.safetensors?key=secret", f"{served.url}/a.safetensors?key=secret"
        assert run("attest", model, "--source", there, "-q").out == text
        ran = run("verify", model, "--statement", "s.json", "--source", there)
        assert ran.code == 0 and "statement, source, bytes" in ran.out and "secret" not in ran.out + ran.err, ran
    with serving(tmp_path) as served:
        line = one_line(run("attest", f"{served.url}/folder"), 2)
        assert "a web server does not list its folders" in line and "download" in line
        assert "no such file" in one_line(run("attest", f"{served.url}/none.safetensors"), 1)


def test_large_files_are_read_from_the_network_once(hub: Served, tmp_path: Path) -> None:
    """More than fits into what is read ahead; what is dropped before it was read would be asked for again."""
    assert hub.hub is not None
    sizes = [7 << 20, 11 << 20, 30 << 20, 1 << 20, 0]
    for number, size in enumerate(sizes):
        (hub.folder / f"{number}.bin").write_bytes(bytes([number]) * size)
    files = {f"{n}.bin": f"hf://{hub.hub.repo}@{COMMIT}/{n}.bin" for n in range(len(sizes))}
    found = attest.digests(files, threads=8)
    assert list(found.values()) == [hashlib.sha256(bytes([n]) * size).hexdigest() for n, size in enumerate(sizes)]
    assert hub.sent <= sum(sizes) * 1.01
