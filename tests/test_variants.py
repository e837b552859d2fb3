"""A calibrator, a format, a layout and a rendering cost a file each, and nothing else has to know of them.

The files of tests/variants are put into a copy of the package, and the command line, the tables of the topics and the
suites of the other tests are run against that.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from making import ROOT, Ran, load, one_line, save
from strategies import gaussian

import quantcli
import quantcli.kernels

VARIANTS = ROOT / "tests" / "variants"
FILES = {path.stem: path.relative_to(VARIANTS) for path in VARIANTS.rglob("*.py")}

ALONE = """import sys
sys.meta_path[:] = [f for f in sys.meta_path if type(f).__module__ != "_editable_skbc_quantcli"]
"""
"""Run when Python starts, behind what an editable install has put there: `quantcli` is found by its path again."""


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package and a file more of each kind, and with a model."""
    folder = tmp_path_factory.mktemp("variants")
    package = folder / "quantcli"
    shutil.copytree(Path(quantcli.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for built in (path for found in quantcli.kernels.__path__ for path in Path(found).glob("_kernels.*")):
        shutil.copy(built, package / "kernels")
    for path in FILES.values():
        assert not (package / path).exists()
        shutil.copy(VARIANTS / path, package / path)
    (folder / "sitecustomize.py").write_text(ALONE)
    save(folder / "model.safetensors", {"a.weight": gaussian(64, 256), "b.weight": gaussian(96, 128, seed=1),
                                        "a.bias": gaussian(64)})  # fmt: skip
    return folder


def python(place: Path, *arguments: object, **more: str) -> Ran:
    """Run Python with the copy of the package."""
    found = {**os.environ, "PYTHONPATH": str(place), "COLUMNS": "100", **more}
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, env=found, cwd=place,
                          timeout=300, check=False)  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr)


def quantcli_of(place: Path, *arguments: object, **more: str) -> Ran:
    """Run its command line."""
    return python(place, "-m", "quantcli", *arguments, **more)


def done(ran: Ran) -> Ran:
    assert ran.code == 0, ran
    return ran


def test_there_is_a_file_of_every_kind() -> None:
    assert sorted(str(path.parent) for path in FILES.values()) == ["calibrators", "formats", "layouts",
                                                                    "reports/renderings"]  # fmt: skip
    assert all(len((VARIANTS / path).read_text().splitlines()) <= 85 for path in FILES.values())


# ---- the command line -------------------------------------------------------------------------------------------


def test_help_lists_them(place: Path) -> None:
    text = done(quantcli_of(place, "quantize", "-h")).out
    for line in ("trimmed +a tenth of the range is given up", "quint +five levels", "rows8 +for programs that"):
        assert re.search(rf"^    {line}", text, re.MULTILINE), line
    assert re.search(r"^    tsv +a line per tensor", done(quantcli_of(place, "report", "-h")).out, re.MULTILINE)
    assert re.search(r"\brows8\b", done(quantcli_of(place, "export", "-h")).out)


@pytest.mark.parametrize(("words", "offered"), [
    ("quantize --calibration tr", "trimmed"), ("quantize --type qui", "quint"), ("quantize --to ro", "rows8"),
    ("export x.safetensors --to ro", "rows8"), ("report --format ts", "tsv"),
])  # fmt: skip
def test_shells_complete_them(words: str, offered: str, place: Path) -> None:
    typed = {"COMP_WORDS": f"quantcli {words}", "COMP_CWORD": str(len(words.split()))}
    assert quantcli_of(place, _QUANTCLI_COMPLETE="bash_complete", **typed).out.split() == [f"plain,{offered}"]


def test_a_calibrator(place: Path) -> None:
    found = done(quantcli_of(place, "quantize", "model.safetensors", "--calibration", "trimmed", "-o", "t.safetensors",
                             "--force", "--json")).json  # fmt: skip
    assert {t["calibration"] for t in found["tensors"] if t["disposition"] == "quantized"} == {"trimmed"}
    assert all(t["clipped_fraction"] > 0 for t in found["tensors"] if t["disposition"] == "quantized")
    done(quantcli_of(place, "verify", "t.safetensors", "--source", "model.safetensors"))
    against = done(quantcli_of(place, "report", "t.safetensors", "--against", "model.safetensors", "--json")).json
    assert {t["name"]: t["mse"] for t in against["tensors"]} == {t["name"]: t["mse"] for t in found["tensors"]}
    done(quantcli_of(place, "sweep", "model.safetensors", "--calibration", "trimmed,minmax", "-q"))


def test_a_format(place: Path) -> None:
    done(quantcli_of(place, "quantize", "model.safetensors", "--type", "quint", "--group-size", 64, "-o",
                     "f.safetensors", "--force"))  # fmt: skip
    done(quantcli_of(place, "verify", "f.safetensors", "--source", "model.safetensors"))
    assert "quintg64" in done(quantcli_of(place, "report", "f.safetensors")).out
    done(quantcli_of(place, "dequantize", "f.safetensors", "-o", "fb.safetensors", "--force", "-q"))
    groups = load(place / "fb.safetensors")["a.weight"].array.reshape(-1, 64)
    steps = np.unique(np.abs(groups / np.abs(groups).max(axis=1, keepdims=True)).round(3))
    assert steps.tolist() == pytest.approx([0, 0.4, 1])


def test_a_layout(place: Path) -> None:
    done(quantcli_of(place, "quantize", "model.safetensors", "--to", "rows8", "-o", "l.safetensors", "--force"))
    stored, source = load(place / "l.safetensors"), load(place / "model.safetensors")
    assert stored.keys() == {"a.row_codes", "a.row_scales", "b.row_codes", "b.row_scales", "a.bias"}
    values = stored["a.row_codes"].array.astype(np.float32) * stored["a.row_scales"].array[:, None]
    assert np.abs(values - source["a.weight"].array).max() < 0.05
    done(quantcli_of(place, "dequantize", "l.safetensors", "-o", "back.safetensors", "--force", "-q", "--dtype",
                     "float32"))  # fmt: skip
    np.testing.assert_array_equal(load(place / "back.safetensors")["a.weight"].array, values)
    done(quantcli_of(place, "verify", "l.safetensors", "--source", "model.safetensors"))
    assert "w8c" in done(quantcli_of(place, "report", "l.safetensors")).out
    assert "a.weight" in done(quantcli_of(place, "compare", "model.safetensors", "l.safetensors")).out
    line = one_line(quantcli_of(place, "quantize", "l.safetensors"), 1)
    assert line.startswith("l.safetensors: this model is quantized already, Rows of 8 bits: w8c (2 tensors")
    assert "--requantize" in line
    save(place / "bad.safetensors", {"a.row_codes": stored["a.row_codes"].array,
                                     "a.row_scales": np.ones(3, np.float32)})  # fmt: skip
    line = one_line(quantcli_of(place, "quantize", "bad.safetensors"), 1)
    assert "a.weight: 64 rows and scales [3]" in line


def test_a_layout_of_a_folder(place: Path) -> None:
    model = ROOT / "sample_models" / "tiny-llama"
    done(quantcli_of(place, "quantize", model, "--to", "rows8", "-o", "folder", "--force", "-q"))
    config = json.loads((place / "folder" / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "rows8"}
    done(quantcli_of(place, "verify", "folder", "--source", model))
    done(quantcli_of(place, "quantize", model, "--bits", 8, "--group-size", -1, "-o", "native", "--force", "-q"))
    found = done(quantcli_of(place, "export", "native", "--to", "rows8", "-o", "exported", "--force", "--json")).json
    assert found["lossless"] is True
    done(quantcli_of(place, "compare", "folder", "exported"))


def test_a_rendering(place: Path) -> None:
    done(quantcli_of(place, "quantize", "model.safetensors", "-o", "r.safetensors", "--force", "-q"))
    printed = done(quantcli_of(place, "report", "r.safetensors", "--format", "tsv", "-o", "tsv=x", "-o", "r.tsv")).out
    lines = [line.split("\t") for line in printed.splitlines()]
    assert lines[0][:3] == ["file", "name", "disposition"] and [line[1] for line in lines[1:]] == [
        "a.weight", "b.weight", "a.bias"]  # fmt: skip
    assert (place / "x").read_text() == (place / "r.tsv").read_text() == printed
    line = one_line(quantcli_of(place, "report", "r.safetensors", "-o", "r.pdf"), 2)
    assert ".tsv" in line and "tsv" in line.rpartition("name one of ")[2]


# ---- topics and suites ------------------------------------------------------------------------------------------


def test_tables_take_them_up(place: Path) -> None:
    """And `make docs` with them writes nothing but their lines and choices."""
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "import write_tables as w\n"
        "for path, text in w.stale(): path.name == 'README.md' or path.write_text(text)\n"
    )
    topics = place / "quantcli" / "docs"
    before = {path.name: path.read_text() for path in topics.glob("*.md")}
    done(python(place, "-c", program))
    lines = {name: done(quantcli_of(place, "help", name)).out.splitlines()
             for name in ("methods", "formats", "targets", "gates")}  # fmt: skip
    for topic, cells in {
        "methods": ["`trimmed` | a tenth of the range is given up for finer steps | integers, mid-rise, fixed levels"],
        "formats": ["`quint` | five levels, -1, -0.4, 0, 0.4 and 1, in three bits | 3 | no | `minmax`"],
        "targets": ["`rows8` | programs that multiply int8 | folder or file | int of 8 bits, symmetric, per channel",
                    "Rows of 8 bits | codes and a scale for each row"],
        "gates": ["`tsv` | .tsv | a line per tensor, for cut, sort and awk"],
    }.items():  # fmt: skip
        for cell in cells:
            assert any(line.startswith(f"| {cell}") for line in lines[topic]), cell
    names = [*FILES, "Rows of 8 bits"]
    for name, text in before.items():
        changed = set((topics / name).read_text().splitlines()) - set(text.splitlines())
        assert all(any(word in line for word in names) for line in changed), (name, changed)


@pytest.mark.parametrize(("suites", "words", "least"), [
    (["tensors/test_core.py"], "awkward_arrays and trimmed and (ragged or convolution or zero or scalar)", 10),
    (["formats/test_formats.py"], "(quint or trimmed) and not awkward_arrays", 25),
    (["formats/test_formats.py"], "awkward_arrays and quint", 50),
    (["layouts/test_exports.py"], "rows8", 2),
    (["layouts/test_layouts.py"], "rows8", 5),
    (["reports/test_renderings_all.py", "test_damaged.py"], "tsv", 10),
    (["test_layers.py"], "every_variant or every_layout or variants_do_not or trimmed or quint or rows8 or tsv", 10),
])  # fmt: skip
def test_suites_take_them_up(suites: list[str], words: str, least: int, place: Path) -> None:
    paths = [ROOT / "tests" / suite for suite in suites]
    ran = python(place, "-m", "pytest", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml", *paths, "-k",
                 words)  # fmt: skip
    passed = re.search(r"(\d+) passed", ran.out)
    assert ran.code == 0 and passed is not None and int(passed[1]) >= least, ran.out[-3000:]
