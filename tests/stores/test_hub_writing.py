"""Models written to the hub: one commit with all of them or none, the bytes of a local run, one line for a fault."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import contents, made
from cloud_parts import Storage, azure_server, google_server
from hub_parts import WritableHub, writable_hub
from making import environment, one_line, run, run_process, save
from strategies import gaussian

import quantcli
from quantcli.stores.remote import hub_writing, object_writing, reading, spool
from quantcli.stores.remote import lock as locking

WEIGHTS = (".safetensors", ".index.json", "config.json")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    """A hub on which `me` and `org` may write. What huggingface_hub tries again waits for nothing."""
    constants = pytest.importorskip("huggingface_hub.constants")
    http = pytest.importorskip("huggingface_hub.utils._http")
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(http.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(reading, "PAUSES", [0.01])
    spools = tmp_path / "spools"
    spools.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spools))
    with writable_hub(tmp_path / "store") as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        yield found
    assert not list(spools.iterdir()), "a spool was left behind"


def quantized(source: object, output: object, *options: object) -> Any:
    return run("quantize", source, "-o", output, "--bits", 4, *options)


def weights(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files that do not name the output."""
    return {name: content for name, content in files.items() if name.endswith(WEIGHTS)}


def test_a_repository_holds_the_bytes_of_a_local_run_in_one_commit(hub: WritableHub, tmp_path: Path) -> None:
    """Quote: "a commit to the hub at the end (`-o hf://me/repo`, `--private`, model card included)"."""
    folder = made(tmp_path / "model")
    assert quantized(folder, tmp_path / "local").code == 0
    ran = quantized(folder, "hf://me/small", "--private")
    assert ran.code == 0, ran.err
    assert "-> hf://me/small" in ran.out
    repo, found, local = hub.repos["me/small"], hub.content("me/small"), contents(tmp_path / "local")
    assert repo.private and len(repo.messages) == 1
    assert weights(found) == weights(local) and set(found) - {".gitattributes"} == set(local)
    assert b"## How it was made" in found["README.md"]
    assert run("verify", "hf://me/small", "--source", folder).code == 0


def test_only_one_file_is_in_the_spool_at_a_time(
    hub: WritableHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quote: "ONE file at a time"."""
    seen, sent = [], spool.SpooledFolder.finished

    def counted(self: spool.SpooledFolder, name: str) -> None:
        seen.append(sum(len(names) for _, _, names in os.walk(self.temp)))
        sent(self, name)

    monkeypatch.setattr(spool.SpooledFolder, "finished", counted)
    assert quantized(made(tmp_path / "model"), "hf://me/small").code == 0
    assert max(seen) == 1 and len(hub.uploaded) >= 4


@pytest.mark.parametrize("command", ["export", "dequantize"])
def test_export_and_dequantize_write_to_the_hub(hub: WritableHub, tmp_path: Path, command: str) -> None:
    assert quantized(made(tmp_path / "model"), tmp_path / "q", "--group-size", 32).code == 0
    how = ["--to", "mlx"] if command == "export" else []
    assert run(command, tmp_path / "q", *how, "-o", tmp_path / "local").code == 0
    ran = run(command, tmp_path / "q", *how, "-o", "hf://org/out")
    assert ran.code == 0, ran.err
    assert weights(hub.content("org/out")) == weights(contents(tmp_path / "local"))


def test_a_single_file_is_put_beside_others(hub: WritableHub, tmp_path: Path) -> None:
    source = save(tmp_path / "model.safetensors", {"w": gaussian(64, 256)})
    hub.put("me/files", {"other.gguf": b"other"})
    assert quantized(source, tmp_path / "a.safetensors").code == 0
    for _ in range(2):
        ran = quantized(source, "hf://me/files/sub/a.safetensors")
    assert "the output exists" in one_line(ran, 2)
    assert quantized(source, "hf://me/files/sub/a.safetensors", "--force").code == 0
    assert run("dequantize", tmp_path / "a.safetensors", "-o", "hf://me/files/float.safetensors").code == 0
    found = hub.content("me/files")
    assert found["sub/a.safetensors"] == (tmp_path / "a.safetensors").read_bytes()
    assert found["other.gguf"] == b"other" and "float.safetensors" in found


def test_an_old_model_is_replaced_whole_and_only_with_force(hub: WritableHub, tmp_path: Path) -> None:
    """Quote: "one commit replaces the old weights and deletes those no longer belonging"."""
    folder = made(tmp_path / "model")
    old = {"model-00009-of-00009.safetensors": b"old", "onnx/model.onnx": b"old", "LICENSE": b"mine"}
    hub.put("me/old", old)
    before = hub.content("me/old")
    ran = quantized(folder, "hf://me/old")
    assert "the repository has a model already" in one_line(ran, 2)
    assert hub.content("me/old") == before and not hub.uploaded
    assert quantized(folder, "hf://me/old", "--force").code == 0
    found = hub.content("me/old")
    assert not {"model-00009-of-00009.safetensors", "onnx/model.onnx"} & set(found) and found["LICENSE"] == b"mine"
    assert len(hub.repos["me/old"].messages) == 2


def test_a_commit_that_changes_nothing_says_nothing(hub: WritableHub, tmp_path: Path) -> None:
    """The library logs that it makes no commit; -q is for the lines of an error alone."""
    folder = made(tmp_path / "model")
    assert quantized(folder, "hf://me/same").code == 0
    ran = run_process(
        "quantize", folder, "-o", "hf://me/same", "--bits", 4, "--force", "-q", HF_ENDPOINT=hub.url, HF_TOKEN="hf_write"
    )
    assert (ran.code, ran.out, ran.err) == (0, "", "")


def test_a_branch_is_made_with_the_commit_and_main_stays(hub: WritableHub, tmp_path: Path) -> None:
    hub.put("me/model", {"model-old.safetensors": b"float", "LICENSE": b"mine"})
    main = hub.content("me/model")
    assert quantized(made(tmp_path / "model"), "hf://me/model@w4").code == 0
    assert hub.content("me/model") == main
    found = hub.content("me/model", "w4")
    assert "model-old.safetensors" not in found and found["LICENSE"] == b"mine" and "config.json" in found
    assert run("verify", "hf://me/model@w4").code == 0


def test_what_was_uploaded_by_a_run_that_failed_is_not_sent_again(hub: WritableHub, tmp_path: Path) -> None:
    """Quote: "what was preuploaded is not uploaded again"."""
    folder, failing = made(tmp_path / "model"), [True]
    hub.fault = lambda method, path, number: b"" if failing[0] and method == "PUT" and len(hub.uploaded) >= 2 else None
    ran = quantized(folder, "hf://me/again")
    assert f"{hub.url} cannot be reached" in one_line(ran, 1)
    assert set(hub.content("me/again")) == {".gitattributes"}, "an unfinished model can be seen"
    first, failing[0] = list(hub.uploaded), False
    again = quantized(folder, "hf://me/again", "--resume")
    assert again.code == 0 and "all is computed again" in again.err
    assert len(first) == 2 and len(hub.uploaded) == len(set(hub.uploaded))
    assert quantized(folder, tmp_path / "local").code == 0
    assert weights(hub.content("me/again")) == weights(contents(tmp_path / "local"))


def test_large_files_go_in_parts(hub: WritableHub, tmp_path: Path) -> None:
    hub.chunk = 10_000
    source = save(tmp_path / "model.safetensors", {"w": gaussian(256, 512)})
    assert quantized(source, tmp_path / "a.safetensors").code == 0
    assert quantized(source, "hf://me/parts/a.safetensors").code == 0
    assert hub.content("me/parts")["a.safetensors"] == (tmp_path / "a.safetensors").read_bytes()
    assert any(path.endswith("/complete") for _, path in hub.log)


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        ("no token", 1, "a token is needed; set HF_TOKEN"),
        ("reads only", 1, "the token may only read"),
        ("unknown token", 1, "no access (401)"),
        ("no organisation", 1, "this token may not create a repository of nobody"),
        ("a public one", 2, "the repository exists and is public"),
        ("a tag", 2, "this is a tag"),
        ("a commit", 2, "outputs are written to branches"),
        ("not a repository", 2, "not the URL of a model on the hub"),
        ("too large", 2, "split it with --max-shard-size"),
        ("no room", 1, "not enough space"),
        ("not of the hub", 2, "only repositories of the hub are private"),
    ],
)
def test_what_cannot_be_written_is_one_line_before_a_weight_is_read(
    hub: WritableHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, code: int, said: str
) -> None:
    output, options = "hf://me/new", list[object]()
    if what in ("no token", "reads only", "unknown token"):
        monkeypatch.setenv("HF_TOKEN", {"no token": "", "reads only": "hf_read"}.get(what, "hf_else"))
    elif what == "no organisation":
        output = "hf://nobody/new"
    elif what in ("a public one", "a tag"):
        hub.put("me/new", {"LICENSE": b"mine"})
        hub.repos["me/new"].tags["v1"] = "c" * 40
        output, options = ("hf://me/new@v1", []) if what == "a tag" else (output, ["--private"])
    elif what == "a commit":
        output = f"hf://me/new@{'1' * 40}"
    elif what == "not a repository":
        output = "hf://me"
    elif what == "too large":
        monkeypatch.setattr(hub_writing.WRITER, "_most", 1000)
    elif what == "no room":
        full = os.statvfs_result((4096, 4096, 100, 0, 0, 100, 0, 0, 0, 255))
        monkeypatch.setattr(os, "statvfs", lambda path: full)
    else:
        output, options = str(tmp_path / "new"), ["--private"]
    ran = quantized(made(tmp_path / "model"), output, *options)
    assert said in one_line(ran, code)
    assert not hub.uploaded and not any("/commit/" in path for _, path in hub.log)


def test_the_plan_of_a_private_repository_makes_none(hub: WritableHub, tmp_path: Path) -> None:
    """--dry-run takes --private where the run would, and refuses it where the run would."""
    folder = made(tmp_path / "model")
    assert quantized(folder, "hf://me/planned", "--private", "--dry-run").code == 0 and not hub.repos
    ran = quantized(folder, str(tmp_path / "new"), "--private", "--dry-run")
    assert "only repositories of the hub are private" in one_line(ran, 2)


def test_a_branch_that_moved_keeps_what_came_in_between(hub: WritableHub, tmp_path: Path) -> None:
    hub.put("me/busy", {"LICENSE": b"mine"})

    def meanwhile(method: str, path: str, number: int) -> None:
        if path.endswith("/objects/batch") and len(hub.repos["me/busy"].messages) == 1:
            hub.put("me/busy", {"model.safetensors": b"theirs"})

    hub.fault = meanwhile
    ran = quantized(made(tmp_path / "model"), "hf://me/busy")
    assert "the branch has moved since the run began" in one_line(ran, 1)
    assert hub.content("me/busy")["model.safetensors"] == b"theirs" and "config.json" not in hub.content("me/busy")


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub: WritableHub, tmp_path: Path) -> None:
    commit = WritableHub.commit

    def answered(repo: Any, branch: str, files: Any, message: str) -> str:
        sha = commit(repo, branch, files, message)
        hub.fault = lambda method, path, number: None
        raise ConnectionResetError(sha)

    hub.commit = answered  # type: ignore[method-assign]
    ran = quantized(made(tmp_path / "model"), "hf://me/lost")
    assert ran.code == 0, ran.err
    assert len(hub.repos["me/lost"].messages) == 1 and "config.json" in hub.content("me/lost")


def test_what_the_hub_refuses_is_told(hub: WritableHub, tmp_path: Path) -> None:
    source = save(tmp_path / "model.safetensors", {"w": gaussian(64, 256)})
    hub.largest = 100
    ran = quantized(source, "hf://me/new/a.safetensors")
    assert "the hub does not take the file" in one_line(ran, 1)
    hub.largest, hub.ignored = 1 << 40, "a.safetensors"
    ran = quantized(source, "hf://me/new/a.safetensors")
    assert "the .gitignore of the repository leaves this file out" in one_line(ran, 1)
    assert set(hub.content("me/new")) == {".gitattributes"}


@pytest.mark.parametrize("scheme", ["hf", "gs", "az"])
def test_what_is_done_in_parts_is_not_written_here(hub: WritableHub, tmp_path: Path, scheme: str) -> None:
    source, output = made(tmp_path / "model"), f"{scheme}://me/parts"
    for option in (["--part", "1/2"], ["--dask", "local:2"]):
        said = one_line(quantized(source, output, *option), 2)
        assert "are made by one process, not of parts" in said and option[0] in said
    assert "are made by one process, not of parts" in one_line(run("merge", output), 2)
    if scheme != "hf":
        assert "cannot be resumed" in one_line(quantized(source, output, "--resume"), 2)
    assert not hub.log


def test_a_private_repository_from_python(hub: WritableHub, tmp_path: Path) -> None:
    folder = made(tmp_path / "model")
    quantcli.quantize_file(folder, "hf://me/mine", bits=4, private=True)
    assert hub.repos["me/mine"].private and "config.json" in hub.content("me/mine")
    quantcli.quantize_file(folder, "hf://me/open", bits=4)
    assert not hub.repos["me/open"].private


def test_a_card_that_the_hub_refuses_is_told_before_the_work(hub: WritableHub, tmp_path: Path) -> None:
    """Quote: "a wrong request ... is refused before the first weight is read"."""
    folder = made(tmp_path / "model")
    (folder / "README.md").write_text("---\nlicense: [\n---\n# Model\n")
    said = one_line(quantized(folder, "hf://me/card"), 2)
    assert "README.md" in said and "bad YAML" in said
    assert not hub.uploaded and not hub.repos


def test_ctrl_c_during_an_upload_leaves_nothing(hub: WritableHub, tmp_path: Path) -> None:
    source = save(tmp_path / "model.safetensors", {"w": gaussian(64, 256)})
    spools, there, go = tmp_path / "own", threading.Event(), threading.Event()
    spools.mkdir()

    def waiting(method: str, path: str, number: int) -> None:
        if method == "PUT":
            there.set()
            go.wait(60)

    hub.fault = waiting
    env = environment() | {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_write", "TMPDIR": str(spools)}
    words = ["quantize", str(source), "--bits", "4", "-o", "hf://me/stopped/a.safetensors"]
    process = subprocess.Popen([sys.executable, "-m", "quantcli", *words], env=env, stderr=subprocess.PIPE)
    try:
        assert there.wait(60)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        go.set()
        process.kill()
    assert process.returncode == -signal.SIGINT and b"Traceback" not in said
    assert not list(spools.iterdir()) and set(hub.content("me/stopped")) == {".gitattributes"}


def test_a_dry_run_asks_the_hub_for_nothing(hub: WritableHub, tmp_path: Path) -> None:
    assert quantized(made(tmp_path / "model"), "hf://me/new", "--dry-run").code == 0
    assert not hub.log


def test_memory_does_not_grow_with_what_is_uploaded(hub: WritableHub, tmp_path: Path) -> None:
    """Quote: "tens of MiB": a file of 64 MiB, sent whole, with what huggingface_hub itself takes."""
    kept = np.zeros((16, 1 << 20), np.float32)
    source = save(tmp_path / "model.safetensors", {"w": gaussian(64, 256), "kept": kept})
    program = (
        "import re, sys; from quantcli.__main__ import main; sys.argv = ['quantcli', *sys.argv[1:]]\n"
        "try: main()\n"
        "finally: print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1], file=sys.stderr)"
    )
    words = [
        "quantize",
        source,
        "--bits",
        "8",
        "--exclude",
        "kept",
        "-o",
        "hf://me/big/a.safetensors",
        "-q",
        "--threads",
        "1",
    ]
    env = environment() | {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_write"}
    ran = subprocess.run([sys.executable, "-c", program, *map(str, words)], env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stderr.split()[-1]) < 128 << 10


# ---- Google Cloud Storage and Azure -------------------------------------------------------------------------------


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A bucket of obstore in memory, in place of those on the network."""
    pytest.importorskip("obstore")
    from obstore.store import MemoryStore

    from quantcli.stores import remote
    from quantcli.stores.remote import cloud

    store = MemoryStore()
    remote.forget()
    monkeypatch.setattr(cloud.STORE, "bucket", lambda url: (store, cloud.split(url)[1]))
    return store


def listed(store: Any) -> dict[str, bytes]:
    """The objects of a bucket."""
    found = [one["path"] for block in store.list() for one in block]
    return {path: bytes(store.get(path).bytes()) for path in found}


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_a_bucket_holds_the_bytes_of_a_local_run(objects: Any, tmp_path: Path, scheme: str) -> None:
    folder = made(tmp_path / "model")
    assert quantized(folder, tmp_path / "local").code == 0
    ran = quantized(folder, f"{scheme}://bucket/a/w4")
    assert ran.code == 0, ran.err
    local = {f"a/w4/{name}": content for name, content in contents(tmp_path / "local").items()}
    assert weights(listed(objects)) == weights(local) and set(listed(objects)) == set(local)
    assert run("verify", f"{scheme}://bucket/a/w4", "--source", folder).code == 0
    said = tmp_path / "w4.intoto.json"
    said.write_text(run("attest", f"{scheme}://bucket/a/w4", "--source", folder, "-q").out, encoding="utf-8")
    by_hand = {n.removeprefix("a/w4/"): hashlib.sha256(c).hexdigest() for n, c in listed(objects).items()}
    assert {f["name"]: f["digest"]["sha256"] for f in json.loads(said.read_bytes())["subject"]} == by_hand
    assert run("verify", f"{scheme}://bucket/a/w4", "--statement", said, "--source", folder).code == 0
    assert "the output exists" in one_line(quantized(folder, f"{scheme}://bucket/a/w4"), 2)
    assert quantized(folder, f"{scheme}://bucket/a/w4", "--force", "--max-shard-size", "20kB").code == 0
    assert quantized(folder, tmp_path / "cut", "--max-shard-size", "20kB").code == 0
    cut = {f"a/w4/{name}": content for name, content in contents(tmp_path / "cut").items()}
    assert weights(listed(objects)) == weights(cut), "objects of the old model are left"


def test_a_single_object(objects: Any, tmp_path: Path) -> None:
    source = save(tmp_path / "model.safetensors", {"w": gaussian(64, 256)})
    assert quantized(source, tmp_path / "a.safetensors").code == 0
    assert quantized(source, "gs://bucket/sub/a.safetensors").code == 0
    assert listed(objects) == {"sub/a.safetensors": (tmp_path / "a.safetensors").read_bytes()}
    assert "the output exists" in one_line(quantized(source, "gs://bucket/sub/a.safetensors"), 2)


def test_a_run_that_fails_leaves_nothing_in_a_bucket(
    objects: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quote: "nothing half-written that looks whole"."""
    import obstore

    put, sent = obstore.put, list[str]()

    def failing(store: Any, key: str, *arguments: Any, **options: Any) -> Any:
        sent.append(key)
        if len(sent) > 3:
            raise obstore.exceptions.PermissionDeniedError("403 Forbidden: the token has Expired")
        return put(store, key, *arguments, **options)

    monkeypatch.setattr(obstore, "put", failing)
    assert "the credentials have expired" in one_line(quantized(made(tmp_path / "model"), "az://bucket/w4"), 1)
    assert sent and not listed(objects)


def test_what_makes_a_folder_whole_is_sent_last(objects: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore

    put, sent = obstore.put, list[str]()

    def noted(store: Any, key: str, *arguments: Any, **options: Any) -> Any:
        sent.append(key)
        return put(store, key, *arguments, **options)

    monkeypatch.setattr(obstore, "put", noted)
    assert quantized(made(tmp_path / "model"), "gs://bucket/w4").code == 0
    others = [key for key in sent if not key.endswith(("config.json", "README.md"))]
    assert "w4/model.safetensors.index.json" in others
    assert max(map(sent.index, others)) < sent.index("w4/config.json") < sent.index("w4/README.md")


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_two_runs_on_one_output(objects: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    """Quote: "two drivers on one destination: one line, nothing half-written that looks whole"."""
    source, lock = made(tmp_path / "model"), ".w4.quantcli-partial/lock"
    finished, second = spool.SpooledFolder.finished, list[Any]()

    def meanwhile(self: spool.SpooledFolder, name: str) -> None:
        if not second:
            second.append(None)
            second[0] = quantized(source, f"{scheme}://bucket/w4", "--force")
        finished(self, name)

    monkeypatch.setattr(spool.SpooledFolder, "finished", meanwhile)
    assert quantized(source, f"{scheme}://bucket/w4").code == 0
    assert "another run is writing it" in one_line(second[0], 1)
    assert "w4/config.json" in listed(objects) and lock not in listed(objects)
    objects.put(lock, b"{}")
    assert "another run is writing it" in one_line(quantized(source, f"{scheme}://bucket/w4", "--force"), 1)
    monkeypatch.setattr(locking, "DEAD", -1.0)
    assert quantized(source, f"{scheme}://bucket/w4", "--force").code == 0
    assert lock not in listed(objects)


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """A server of Google Cloud Storage."""
    pytest.importorskip("obstore")
    monkeypatch.setattr(reading, "PAUSES", [0.01])
    with google_server() as found:
        account = {"gcs_base_url": found.url, "disable_oauth": True, "client_email": "", "private_key": ""}
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps({**account, "private_key_id": ""}))
        monkeypatch.setenv("GOOGLE_BASE_URL", found.url)
        yield found


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """A server of Azure."""
    pytest.importorskip("obstore")
    monkeypatch.setattr(reading, "PAUSES", [0.01])
    with azure_server() as found:
        for name, value in {"ACCOUNT_NAME": "me", "ACCOUNT_KEY": "c2VjcmV0", "ENDPOINT": found.url}.items():
            monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
        yield found


NETWORKS = [("gs", "google"), ("az", "azure")]


@pytest.mark.parametrize(("scheme", "server"), NETWORKS)
def test_written_and_read_over_the_network(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, server: str
) -> None:
    """Files that are sent whole and in parts, read again, replaced, and read as a source."""
    storage: Storage = request.getfixturevalue(server)
    monkeypatch.setattr(object_writing, "PART", 5 << 10)
    folder, url = made(tmp_path / "model"), f"{scheme}://bucket/a/w4"
    assert quantized(folder, tmp_path / "local").code == 0
    ran = quantized(folder, url)
    assert ran.code == 0, ran.err
    local = {f"a/w4/{name}": content for name, content in contents(tmp_path / "local").items()}
    held = {key: content for key, (content, _) in storage.objects.items()}
    assert weights(held) == weights(local) and set(held) == set(local) and not storage.parts
    assert run("verify", url, "--source", folder).code == 0
    assert "the output exists" in one_line(quantized(folder, url), 2)
    assert quantized(folder, url, "--force", "--max-shard-size", "20kB").code == 0
    assert quantized(folder, tmp_path / "cut", "--max-shard-size", "20kB").code == 0
    cut = {f"a/w4/{name}" for name in contents(tmp_path / "cut")}
    assert set(storage.objects) == cut, "objects of the old model are left"
    for name, content in contents(folder).items():
        storage.keep(f"source/{name}", content)
    assert quantized(f"{scheme}://bucket/source", tmp_path / "read").code == 0
    assert weights(contents(tmp_path / "read")) == weights(contents(tmp_path / "local"))


@pytest.mark.parametrize(("scheme", "server"), NETWORKS)
def test_faults_over_the_network_are_one_line(
    request: pytest.FixtureRequest, tmp_path: Path, scheme: str, server: str
) -> None:
    storage: Storage = request.getfixturevalue(server)
    source = save(tmp_path / "model.safetensors", {"w": gaussian(64, 256)})
    url = f"{scheme}://bucket/w4.safetensors"
    for name in ("model", "a.safetensors"):
        assert f"{scheme}://other/{name}: no such bucket" in one_line(run("inspect", f"{scheme}://other/{name}"), 1)
    assert "no such bucket" in one_line(quantized(source, f"{scheme}://other/w4.safetensors"), 1)
    assert "no such file or folder" in one_line(run("inspect", f"{scheme}://bucket/none.safetensors"), 1)
    for status, code, says in (
        (403, "AuthenticationFailed", "no access with these credentials"),
        (403, "ExpiredToken", "the credentials have expired"),
        (503, "ServerBusy", "try again later"),
    ):
        storage.refused = {"PUT": (status, code)}
        assert says in one_line(quantized(source, url), 1)
        storage.refused = {"GET": (status, code)}
        assert says in one_line(run("inspect", url), 1)
    assert not storage.objects


def test_what_a_killed_run_leaves_does_not_look_whole(google: Storage, tmp_path: Path) -> None:
    """Quote: "nothing half-written that looks whole"; a run with --force then writes over it."""
    folder, there, go = made(tmp_path / "model"), threading.Event(), threading.Event()

    def waiting(method: str, key: str) -> None:
        if method == "PUT" and key == "w4/config.json" and not there.is_set():
            there.set()
            go.wait(60)

    google.before = waiting
    words = ["quantize", str(folder), "--bits", "4", "-o", "gs://bucket/w4"]
    process = subprocess.Popen([sys.executable, "-m", "quantcli", *words], env=environment(), stdout=subprocess.DEVNULL)
    try:
        assert there.wait(60)
    finally:
        process.kill()
        process.wait()
        left = dict(google.objects)
        google.objects.clear()  # what the server still does is for nobody
        go.set()
    google.objects.update(left)
    assert "w4/model.safetensors.index.json" in left
    assert not {"w4/config.json", "w4/README.md"} & set(left), "it looks whole"
    assert run("inspect", "gs://bucket/w4").code != 70
    assert "the output exists" in one_line(quantized(folder, "gs://bucket/w4"), 2)
    ran = quantized(folder, "gs://bucket/w4", "--force")
    assert ran.code == 0, ran.err
    assert run("verify", "gs://bucket/w4", "--source", folder).code == 0
