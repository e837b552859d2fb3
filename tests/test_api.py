"""Calls on files from Python give what the commands give: the same bytes, names, reports and refusals."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import pytest
from making import ROOT, one_line, run, save
from strategies import gaussian

import quantcli
from quantcli import DataError, UsageError

TINY = ROOT / "sample_models" / "tiny-llama"


def contents(path: Path) -> dict[str, bytes]:
    """The bytes of a file, or of every file of a folder, by name."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {"" if path.is_file() else str(f.relative_to(path)): f.read_bytes() for f in files if f.is_file()}


@pytest.mark.parametrize(("words", "asked", "end"), [
    (["--bits", 3, "--group-size", 64], {"bits": 3, "group_size": 64}, ""),
    ([], {}, ".safetensors"),
    (["--to", "gguf"], {"to": "gguf"}, ".gguf"),
    (["--to", "gguf", "--bits", 8], {"to": "gguf", "bits": 8}, ".gguf"),
    (["--to", "comfyui"], {"to": "comfyui"}, ""),
    (["--to", "native", "--include", "*mlp*"], {"to": "native", "include": ["*mlp*"]}, ""),
    (["--recipe", "llm", "--max-shard-size", 90000], {"recipe": "llm", "max_shard_size": 90_000}, ""),
])  # fmt: skip
def test_a_file_has_the_bytes_of_the_command(words: list[Any], asked: dict[str, Any], end: str, tmp_path: Path) -> None:
    command, call = tmp_path / f"command{end}", tmp_path / f"call{end}"
    ran = run("quantize", TINY, *words, "-o", command, "--json")
    assert ran.code == 0, ran.err
    report = quantcli.quantize_file(TINY, call, **asked)
    assert contents(call) == contents(command)
    assert [t.scheme for t in report.tensors] == [t["scheme"] for t in ran.json["tensors"]]
    assert report.summary.bytes_out == ran.json["summary"]["bytes_out"]
    if end:  # of folders the plan is of the default name, which is a folder too
        return
    assert quantcli.plan(TINY, **asked).summary.bytes_out == report.summary.bytes_out


def test_the_default_name_is_that_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.symlink(TINY, "tiny")
    assert quantcli.plan("tiny", bits=4, group_size=32).output == "tiny-w4g32"
    assert quantcli.quantize_file("tiny", to="gguf").output == "tiny-w4g32.gguf"
    assert sorted(os.listdir()) == ["tiny", "tiny-w4g32.gguf"]


@pytest.mark.parametrize(("asked", "words"), [
    ({"bits": 0}, "0 is not a whole number"), ({"include": ["nothing*"]}, "nothing*"),
    ({"container": True}, "containers"), ({"to": "awq", "bits": 8}, "awq cannot store"),
])  # fmt: skip
def test_what_the_command_refuses_is_refused(asked: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        quantcli.quantize_file(TINY, tmp_path / "out", **asked)
    assert words in str(caught.value) and not list(tmp_path.iterdir())


def test_plan_takes_what_quantize_file_takes() -> None:
    names = [list(inspect.signature(call).parameters) for call in (quantcli.quantize_file, quantcli.plan)]
    assert set(names[0]) - set(names[1]) == {"dst", "force", "resume", "threads", "progress", "private", "part"}
    assert {"include", "lora", "bits", "scale_dtype"} <= set(names[1]) and "asked" not in names[0]
    assert quantcli.plan(TINY, digest="none", on_nonfinite="keep").summary.quantized > 0


def test_a_misspelt_keyword_is_an_error_of_the_call(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="bitz"):
        quantcli.quantize_file(TINY, tmp_path / "out", bitz=4)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_parts_from_python(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes of one run; parts of the command and of Python are the same, and need the same keywords."""
    monkeypatch.chdir(tmp_path)
    src = save(tmp_path / "a.safetensors", {f"w{n}": gaussian(32, 256, seed=n) for n in range(6)})
    source, one, many = (TINY, "one", "many") if kind == "folder" else (src, "one.safetensors", "many.safetensors")
    quantcli.quantize_file(source, one, bits=4, group_size=32)
    said = list[str]()
    quantcli.quantize_file(source, many, bits=4, group_size=32, part=(1, 3), say=said.append)
    assert any("part 1/3: " in line for line in said)
    with pytest.raises(DataError, match="parts 2 and 3 of 3 are missing"):
        quantcli.merge(source, many, bits=4, group_size=32)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    quantcli.quantize_file(source, many, bits=4, group_size=32, part="auto/3")
    assert run("quantize", source, "-o", many, "--bits", 4, "--group-size", 32, "--part", "3/3", "-q").code == 0
    with pytest.raises(UsageError, match="part 1/3 had another request"):
        quantcli.merge(source, many, bits=3, group_size=32)
    report = quantcli.merge(source, many, bits=4, group_size=32)
    assert report.summary.parameters > 0
    made = contents(tmp_path / many), contents(tmp_path / one)
    named = [{name: content for name, content in files.items() if name != "README.md"} for files in made]
    assert named[0] == named[1] and set(made[0]) == set(made[1])
    assert not list(tmp_path.glob(".*quantcli*"))


def test_parts_that_cannot_be(tmp_path: Path) -> None:
    src = save(tmp_path / "a.safetensors", {"w": gaussian(32, 256)})
    for part, says in (((4, 3), "there is no part 4 of 3"), ((0, 0), "0 parts"), ("3", "is not a part")):
        with pytest.raises(UsageError, match=says):
            quantcli.quantize_file(src, tmp_path / "b.safetensors", part=part)
    with pytest.raises(UsageError, match="a part always goes on"):
        quantcli.quantize_file(src, tmp_path / "b.safetensors", part=(1, 2), resume=True)
    with pytest.raises(UsageError, match="are made by one process, not of parts"):
        quantcli.quantize_file(src, "gs://bucket/b.safetensors", part=(1, 2))
    quantcli.quantize_file(src, tmp_path / "b.safetensors", part=(1, 1))
    said = one_line(run("merge", tmp_path / "b.safetensors"), 2)
    assert "its parts were made from Python, which leaves no command line; join them there with quantcli.merge" in said
