"""Names and targets that tell what is written: an extension that belongs to another format is refused, and so is a
target that would give a file nothing runs, before a weight is read."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from making import ROOT, load, one_line, run, to

import quantcli
from quantcli import registry
from quantcli.cli import _naming

DIGITS = ROOT / "sample_models" / "digits.safetensors"
LLAMA = ROOT / "sample_models" / "tiny-llama"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# ---- models -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("extension", ["gguf", "GGUF", "onnx", "npz", "npy", "txt", "bin", "pt", "pth", "h5", "json",
                                       "mlx", "awq", "msgpack", "csv", "zip"])  # fmt: skip
@pytest.mark.parametrize("source", [DIGITS, LLAMA], ids=["file", "folder"])
def test_another_formats_extension_is_refused(extension: str, source: Path) -> None:
    """For a file and for a folder, with the target that writes such files where there is one."""
    writes = extension.lower() in registry.names("layouts", "WRITES")
    way = f"use --to {extension.lower()}" if writes else "end the name in .saf"
    Path("r.yaml").write_text("to: native\n")
    told: list[list[str]] = [["--to", "compressed-tensors"], ["--to", "native"], ["--recipe", "r.yaml"]]
    for words in told if writes else [[], ["--dry-run"], ["--target-bpw", "6"], *told]:
        line = one_line(run("quantize", source, *words, "-o", f"out.{extension}", "-q"), 2)
        assert line.startswith(f"out.{extension}: the name ends in .{extension.lower()}, and safetensors would be wri")
        assert way in line
    assert [path.name for path in Path().iterdir()] == ["r.yaml"]


@pytest.mark.parametrize("name", ["out.gguf", "out.GGUF", "out.mlx"])
def test_an_extension_tells_the_target(name: str) -> None:
    """As --to does: the same bytes, with the groups that are usual there; from Python too."""
    target = name.partition(".")[2].lower()
    assert run("quantize", LLAMA, "-o", name, "-q").code == 0
    assert run("quantize", LLAMA, "--to", target, "-o", f"told.{target}", "-q").code == 0
    quantcli.quantize_file(LLAMA, f"called.{target}")
    made = [Path(name), Path(f"told.{target}"), Path(f"called.{target}")]
    files = [sorted(p.glob("*.safetensors")) if p.is_dir() else [p] for p in made]
    assert len({tuple(f.read_bytes() for f in found) for found in files}) == 1
    assert run("inspect", name, "--json").json["layout"].lower().startswith(target)


@pytest.mark.usefixtures("unread")
def test_a_target_that_is_told_by_the_name_is_refused_as_any_other() -> None:
    assert "--container" in one_line(run("quantize", LLAMA, "-o", "out.onnx"), 2)
    assert "it needs the model's config.json" in one_line(run("quantize", DIGITS, "-o", "out.gguf"), 2)
    assert not list(Path().iterdir())


@pytest.mark.parametrize(("target", "name"), [
    ("gguf", "out.safetensors"), ("gguf", "out.onnx"), ("onnx", "out.gguf"), ("mlx", "out.awq"), ("mlx", "out.npz"),
])  # fmt: skip
def test_a_targets_own_extension_is_asked_for(target: str, name: str) -> None:
    assert run("quantize", LLAMA, "--group-size", 32, "-o", "native", "-q").code == 0
    for words in (["quantize", LLAMA], ["export", "native"]):
        line = one_line(run(*words, *to(target), "-o", name), 2)
        assert f"{name}: the name ends in ." in line and not Path(name).exists()


@pytest.mark.parametrize("name", ["plain", "qwen2.5", "model.v1", "x.SafeTensors", ".hidden", "a.mlx"])
def test_other_names_are_fine(name: str) -> None:
    words = ["--to", "mlx", "--group-size", 64] if name == "a.mlx" else []
    assert run("quantize", DIGITS, *words, "-o", name, "-q").code == 0
    assert load(Path(name) / "model.safetensors" if Path(name).is_dir() else Path(name))


def test_dequantize_writes_safetensors_only() -> None:
    assert run("quantize", DIGITS, "-o", "q.safetensors", "-q").code == 0
    assert "out.gguf: the name ends in .gguf" in one_line(run("dequantize", "q.safetensors", "-o", "out.gguf"), 2)
    assert run("dequantize", "q.safetensors", "-o", "out", "-q").code == 0


# ---- containers -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unread")
def test_onnx_would_be_no_model() -> None:
    line = one_line(run("quantize", DIGITS, "--to", "onnx"), 2)
    assert (
        line == f"{DIGITS}: --to onnx: the file would hold the weights without the model's graph; name the "
        ".onnx file of the model; --container writes a MatMulNBits node for each weight, which is no model"
    )


@pytest.mark.parametrize("words", [["quantize", DIGITS, "--to", "mlx"], ["quantize", DIGITS]])
def test_containers_are_for_targets_that_have_some(words: list[Any]) -> None:
    assert "--container" in one_line(run(*words, "--container", "-o", "out"), 2)


def test_a_recipe_says_container() -> None:
    """What --save-recipe writes makes the same file again, and a recipe can say it by itself."""
    words = ["--group-size", 32, *to("gguf"), "-q"]
    assert run("quantize", DIGITS, *words, "-o", "a.gguf", "--save-recipe", "r.yaml").code == 0
    assert "container: true" in Path("r.yaml").read_text()
    assert run("quantize", DIGITS, "--recipe", "r.yaml", "-q", "-o", "b.gguf").code == 0
    assert Path("a.gguf").read_bytes() == Path("b.gguf").read_bytes()
    assert run("plan", DIGITS, "--recipe", "r.yaml", "--bits", "4,8", "--group-size", 32, "--target-bpw", 12,
               "-o", "p.yaml", "-q").code == 0  # fmt: skip
    assert "container: true" in Path("p.yaml").read_text()
    assert run("quantize", DIGITS, "--recipe", "p.yaml", "-q", "-o", "c.gguf").code == 0
    Path("bad.yaml").write_text("container: 1\n")
    assert "neither true nor false" in one_line(run("quantize", DIGITS, "--recipe", "bad.yaml"), 2)


# ---- documents --------------------------------------------------------------------------------------------------


def test_a_sweep_is_written_as_its_name_says() -> None:
    for name in ("s.csv", "s.json", "s.html", "S.HTM"):
        assert run("sweep", DIGITS, "--bits", "3,4", "-o", name, "-q").code == 0
    points = json.loads(Path("s.json").read_text())["points"]
    rows = list(csv.DictReader(Path("s.csv").read_text().splitlines()))
    assert [r["scheme"] for r in rows] == [p["scheme"] for p in points] == ["w3g128", "w4g128"]
    assert [float(r["sqnr_db"]) for r in rows] == [p["sqnr_db"] for p in points]
    assert Path("s.html").read_text().startswith("<!DOCTYPE html>") and Path("S.HTM").exists()
    for name, words in (("s.xlsx", "nothing is written as .xlsx"), ("s", "the name has no extension")):
        line = one_line(run("sweep", DIGITS, "-o", name), 2)
        assert line == f"{name}: {words}; end it in .csv, .htm, .html, .json, .md, .txt" and not Path(name).exists()


def test_a_report_is_written_as_its_name_says() -> None:
    assert run("quantize", DIGITS, "-o", "q.safetensors", "-q").code == 0
    begins = {"r.csv": "file,name,", "r.html": "<!DOCTYPE html>", "r.json": "{", "r.md": "### quantcli",
              "r.txt": "q.safetensors\n", "r.xml": "<?xml"}  # fmt: skip
    words = [w for name in begins for w in ("-o", name)]
    assert run("report", "q.safetensors", *words, "-o", "csv=named.x", "-q").code == 0
    for name, start in begins.items():
        assert Path(name).read_text(encoding="utf-8").startswith(start), name
    assert Path("named.x").read_text() == Path("r.csv").read_text()
    for name in ("r.pdf", "r", "nonsense=r"):
        line = one_line(run("report", "q.safetensors", "-o", name), 2)
        assert all(f" .{known}" in line for known in _naming.renderings()) and not Path(name).exists()
    assert {name.partition(".")[2] for name in begins} < _naming.renderings().keys()
