"""Statements: digests as hashlib has them, the same bytes every time, and models that are made again from them."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import ROOT, one_line, run, save
from strategies import gaussian

LLAMA = ROOT / "sample_models" / "tiny-llama"
DIGITS = ROOT / "sample_models" / "digits.safetensors"

CASES = {
    "folder": (LLAMA, ["--bits", "4", "--group-size", "64"], "w4", []),
    "native in shards": (LLAMA, ["--bits", "3", "--to", "native", "--max-shard-size", "60kB"], "own", []),
    "mlx": (LLAMA, ["--bits", "4", "--group-size", "64", "--to", "mlx"], "mlx", []),
    "file": (DIGITS, ["--bits", "4"], "digits.safetensors", []),
    "gguf with a recipe": (LLAMA, ["--to", "gguf", "--save-recipe", "r.yaml"], "t.gguf", ["--recipe", "r.yaml"]),
}


@pytest.fixture(params=CASES)
def attested(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path, Path]:
    """A model, its statement and its source."""
    monkeypatch.chdir(tmp_path)
    source, options, name, more = CASES[request.param]
    assert run("quantize", source, *options, "-o", name, "-q").code == 0
    ran = run("attest", name, "--source", source, *more, "-o", "s.intoto.json")
    assert ran.code == 0 and ran.out == "", ran
    return tmp_path / name, tmp_path / "s.intoto.json", source


def test_standard_input_has_no_files() -> None:
    line = one_line(run("attest", "-"), 2)
    assert line == "-: statements are about files, not standard input; name the file"


def files_in(path: Path) -> dict[str, str]:
    """SHA-256 of a file, or of those in a folder."""
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    names = {p: p.name if p == path else p.relative_to(path).as_posix() for p in found}
    return {names[p]: hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def named(resources: list[dict[str, Any]]) -> dict[str, str]:
    return {r["name"]: r["digest"]["sha256"] for r in resources}


def test_a_statement_has_the_fields_of_its_types_and_the_digests_of_all_files(
    attested: tuple[Path, Path, Path],
) -> None:
    """in-toto Statement v1 and SLSA Provenance v1 name these fields and no time is among ours."""
    model, statement, source = attested
    found = json.loads(statement.read_text())
    assert set(found) == {"_type", "subject", "predicateType", "predicate"}
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    assert found["predicateType"] == "https://slsa.dev/provenance/v1"
    assert named(found["subject"]) == files_in(model)
    build = found["predicate"]["buildDefinition"]
    assert set(build) == {"buildType", "externalParameters", "resolvedDependencies"}
    assert named(build["resolvedDependencies"]) == files_in(source)
    assert "default:" in build["externalParameters"]["recipe"]
    assert set(found["predicate"]["runDetails"]) == {"builder"}
    again = run("attest", model, "--source", source, "--threads", "1", "--recipe", _recipe(build, statement.parent))
    assert again.out == statement.read_text()


def _recipe(build: dict[str, Any], folder: Path) -> Path:
    path = folder / "again.yaml"
    path.write_text(build["externalParameters"]["recipe"])
    return path


def test_a_model_is_made_again_from_its_statement(attested: tuple[Path, Path, Path]) -> None:
    model, statement, source = attested
    ran = run("verify", model, "--statement", statement, "--source", source)
    assert ran.code == 0 and "statement, source, bytes" in ran.out, ran
    assert run("verify", model, "--statement", statement).code == 0
    # A signature beside the files is none of them, nor is the statement.
    if model.is_dir():
        (model / "model.sig").write_text("x")
        shutil.copy(statement, model / "any.json")
        assert run("verify", model, "--statement", model / "any.json").code == 0


def test_changed_missing_and_new_files_are_named(attested: tuple[Path, Path, Path]) -> None:
    model, statement, _ = attested
    first = model if model.is_file() else next(iter(sorted(model.glob("*.safetensors"))))
    raw = bytearray(first.read_bytes())
    raw[-1] ^= 1
    first.write_bytes(raw)
    if model.is_dir():
        (model / "config.json").unlink()
        (model / "new.txt").write_text("x")
    ran = run("verify", model, "--statement", statement, "--json")
    found = {f["tensor"]: f["problem"] for f in ran.json["findings"]}
    assert ran.code == 1 and "another SHA-256" in found[first.name]
    assert model.is_file() or found["config.json"] == "the file is missing"
    assert model.is_file() or found["new.txt"] == "the file is not in the statement"
    assert len(found) == (1 if model.is_file() else 3)


def test_another_source_and_another_recipe_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = save(tmp_path / "a.safetensors", {"x": gaussian(64, 128, seed=1)})
    assert run("quantize", source, "--bits", "4", "-o", "q.safetensors", "-q").code == 0
    assert run("attest", "q.safetensors", "--source", source, "-o", "s.json", "-q").code == 0
    forged = json.loads(Path("s.json").read_text())
    forged["predicate"]["buildDefinition"]["externalParameters"]["recipe"] = "default: {bits: 3}\n"
    Path("forged.json").write_text(json.dumps(forged))
    ran = run("verify", "q.safetensors", "--statement", "forged.json", "--source", source)
    assert ran.code == 1 and "made again from the source, it is another file" in ran.out
    assert run("verify", "q.safetensors", "--statement", "forged.json").code == 0  # its files are those
    save(tmp_path / "a.safetensors", {"x": gaussian(64, 128, seed=2)})
    ran = run("verify", "q.safetensors", "--statement", "s.json", "--source", source)
    assert ran.code == 1 and "the file of the source has another SHA-256" in ran.out
    assert "not made again" in ran.out and "bytes" not in ran.out.splitlines()[0]


def test_files_that_the_source_does_not_give_and_files_that_it_gives_alone_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m").mkdir()
    save(Path("m/model.safetensors"), {"x.weight": gaussian(64, 128, seed=1)})
    assert run("quantize", "m", "--bits", "4", "-o", "q", "-q").code == 0
    Path("q/notes.txt").write_text("mine")
    Path("q/README.md").unlink()
    assert run("attest", "q", "--source", "m", "-o", "s.json", "-q").code == 0
    ran = run("verify", "q", "--statement", "s.json", "--source", "m", "--json")
    found = {f["tensor"]: f["problem"] for f in ran.json["findings"]}
    assert ran.code == 1 and found == {
        "notes.txt": "no such file is made from the source",
        "README.md": "it is made from the source, and is missing",
    }


def test_envelopes_and_bundles_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DSSE, as cosign writes it, and a bundle of Sigstore around that."""
    monkeypatch.chdir(tmp_path)
    assert run("quantize", DIGITS, "--bits", "4", "-o", "q.safetensors", "-q").code == 0
    text = run("attest", "q.safetensors", "--source", DIGITS, "-q").out
    envelope = {
        "payloadType": "application/vnd.in-toto+json",
        "payload": base64.b64encode(text.encode()).decode(),
        "signatures": [{"sig": "AAAA"}],
    }
    Path("dsse.json").write_text(json.dumps(envelope))
    Path("bundle.json").write_text(json.dumps({"mediaType": "x", "dsseEnvelope": envelope}))
    for name in ("dsse.json", "bundle.json"):
        ran = run("verify", "q.safetensors", "--statement", name, "--source", DIGITS)
        assert ran.code == 0 and "not checked: signatures" in ran.out


def test_where_a_source_is_from(tmp_path: Path) -> None:
    """The folders that the hub's library makes: its cache, and a download to a folder of one's own."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "models--org--name" / "snapshots" / commit
    cache.mkdir(parents=True)
    shutil.copy(DIGITS, cache / "model.safetensors")
    own = tmp_path / "own"
    (own / ".cache" / "huggingface" / "download").mkdir(parents=True)
    shutil.copy(DIGITS, own / "model.safetensors")
    (own / ".cache" / "huggingface" / "download" / "model.safetensors.metadata").write_text(f"{commit}\netag\n1.0\n")
    q = tmp_path / "q.safetensors"
    assert run("quantize", DIGITS, "--bits", "4", "-o", q, "-q").code == 0
    for folder, uri in ((cache, f"pkg:huggingface/org/name@{commit}"), (own, None)):
        build = json.loads(run("attest", q, "--source", folder, "-q").out)["predicate"]["buildDefinition"]
        first, *files = build["resolvedDependencies"]
        assert first == {"name": "source", "digest": {"gitCommit": commit}, **({"uri": uri} if uri else {})}
        assert [f["name"] for f in files] == ["model.safetensors"] and build["externalParameters"].get("source") == uri
    more = ["--source-uri", "git+https://x/y", "--revision", "ab" * 20]
    first = json.loads(run("attest", q, "--source", own, "-q", *more).out)["predicate"]["buildDefinition"]
    assert first["resolvedDependencies"][0]["uri"] == "git+https://x/y"


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("quantize", LLAMA, "--bits", "4", "-o", "w4", "-q").code == 0
    assert run("quantize", LLAMA, "--to", "gguf", "-o", "t.gguf", "-q").code == 0
    assert "--source" in one_line(run("attest", "w4", "--revision", "ab"), 2)
    assert "one of the files" in one_line(run("attest", "w4", "-o", "w4/README.md"), 2)
    assert "no such file" in one_line(run("attest", "none"), 1)
    assert run("attest", "w4", "-o", "w4/model.intoto.json", "-q").code == 0
    Path("other.json").write_text("{}")
    assert "not a statement" in one_line(run("verify", "w4", "--statement", "other.json"), 2)
    line = one_line(run("verify", "w4", "--statement", "w4/model.intoto.json", "--source", LLAMA), 2)
    assert "says nothing of a source" in line
    assert run("attest", "t.gguf", "--source", LLAMA, "-o", "t.intoto.json", "-q").code == 0
    assert "no recipe" in one_line(run("verify", "t.gguf", "--statement", "t.intoto.json", "--source", LLAMA), 2)
    assert "leave out" in one_line(run("verify", "w4", "--statement", "other.json", "--variant", "fp16"), 2)


def test_a_source_of_other_weights_is_refused_before_a_statement_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digests that the model records are those of the weights it was made from; other layouts record none."""
    monkeypatch.chdir(tmp_path)
    weights = {"x": gaussian(64, 128, seed=1), "b": gaussian(128, seed=2)}
    save(tmp_path / "a.safetensors", weights)
    save(tmp_path / "less.safetensors", {"x": weights["x"]})
    weights["x"] = np.nextafter(weights["x"], np.inf)
    save(tmp_path / "other.safetensors", weights)
    for kind in ("xxh3", "sha256"):
        made = ("quantize", "a.safetensors", "--bits", "4", "--digest", kind, "-o", "q.safetensors", "-q", "--force")
        assert run(*made).code == 0
        assert run("attest", "q.safetensors", "--source", "a.safetensors", "-o", "s.json", "-q").code == 0
        for source, problem in (("other.safetensors", "x: these are not the weights"), ("less.safetensors", "b: ")):
            ran = run("attest", "q.safetensors", "--source", source, "-o", "not.json")
            assert f"{source}: {problem}" in one_line(ran, 1) and not Path("not.json").exists()
    assert run("quantize", LLAMA, "--to", "gguf", "-o", "t.gguf", "-q").code == 0
    assert "taken at your word" in run("attest", "t.gguf", "--source", "a.safetensors", "-o", "t.json").err
    assert (
        "nothing in t.gguf tells that quantcli made it: the statement says so on your word"
        in run("attest", "t.gguf").err
    )
    assert "says so on your word" not in run("attest", "q.safetensors").err
    # Integers that were quantized as a signal are digested as the floats that they stand for.
    np.save("signal.npy", np.arange(-4096, 4096, dtype=np.int16).reshape(64, 128))
    assert run("quantize", "signal.npy", "--as-float", "--bits", "8", "-o", "s.safetensors", "-q").code == 0
    assert run("attest", "s.safetensors", "--source", "signal.npy", "-o", "s.json").err.count("\n") == 1
