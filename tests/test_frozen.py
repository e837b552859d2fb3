"""Native files of every released version are read for ever, and this version writes what it has frozen.

The files lie in golden/native/VERSION, written by golden/write_native.py when that version was current. To make one of
these tests pass by writing them anew is to break the promise: see the docstring there.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from golden import models, write_native
from golden.write_native import NATIVE, Case, cases, decoded_of, digests_of, index_of, inside, make, versions
from making import ROOT, Ran, change_header, environment, load, one_line, run

import quantcli
from quantcli.layouts.native.document import VERSION

RAISE = (
    "quantcli writes other bytes than before. The same version gives the same bytes: undo it, or raise the version in "
    "quantcli/__init__.py, run make golden, and list the change with its reason in CHANGELOG.md."
)


@pytest.fixture(params=versions())
def version(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Case, Path]]:
    """What the present code makes of every case, in a folder beside the sources."""
    folder = tmp_path_factory.mktemp("frozen")
    models.build(folder)
    (folder / "out").mkdir()
    with inside(folder):
        return {case.name: (case, folder / make(case, Path("out"))) for case in cases()}


def test_the_files_are_as_they_were_written(version: str) -> None:
    for name, entry in index_of(version).items():
        assert digests_of(NATIVE / version / entry["output"]) == entry["sha256"], name


@pytest.mark.parametrize("kernels", ["", "numpy"])
def test_they_decode_to_the_same_values(version: str, kernels: str) -> None:
    expected = {name: entry["tensors"] for name, entry in index_of(version).items()}
    if kernels:
        script = f"import json; from golden import write_native as w; print(json.dumps(w.decoded_of({version!r})))"
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT / "tests", env=environment(QUANTCLI_KERNELS=kernels),
            capture_output=True, text=True, check=True, timeout=300,
        )  # fmt: skip
        found = json.loads(done.stdout)
    else:
        found = decoded_of(version)
    for name, tensors in expected.items():
        assert found[name] == tensors, name


def test_dequantize_writes_these_values(version: str, tmp_path: Path) -> None:
    """Read by the safetensors library: another way to the same numbers than the Python interface."""
    for name, entry in index_of(version).items():
        out = tmp_path / f"{name}.safetensors"
        ran = run("dequantize", NATIVE / version / entry["output"], "--dtype", "float32", "-o", out, "-q")
        assert ran.code == 0, (name, ran)
        stored = load(out)
        assert set(stored) == set(entry["tensors"]), name
        for tensor, line in entry["tensors"].items():
            if " kept " not in f"{line} ":
                assert f"float32 {write_native.sha256(stored[tensor].data)}" in line, (name, tensor)


def test_verify_and_inspect_take_them(version: str) -> None:
    for name, entry in index_of(version).items():
        path = NATIVE / version / entry["output"]
        assert run("verify", path, "-q") == Ran(0, "", ""), name
        shown = run("inspect", path, "--json")
        assert shown.code == 0 and shown.err == "", (name, shown)
        assert {t["name"] for t in shown.json["tensors"]} == set(entry["tensors"]), name


def test_this_version_is_frozen_and_writes_the_same_bytes(made: dict[str, tuple[Case, Path]]) -> None:
    assert quantcli.__version__ in versions(), f"run make golden: nothing is frozen of {quantcli.__version__}"
    index = index_of(quantcli.__version__)
    assert set(index) == set(made), "run make golden: its cases are not those of the index"
    changed = [name for name, (_, path) in made.items() if digests_of(path) != index[name]["sha256"]]
    assert not changed, f"{', '.join(changed)}: {RAISE}"


def test_codes_are_found_again_from_the_original(made: dict[str, tuple[Case, Path]]) -> None:
    for name, (case, path) in made.items():
        with inside(path.parent.parent):
            ran = run("verify", path, "--source", case.source, *case.importance, "-q")
        assert ran == Ran(0, "", ""), (name, ran)


# ---- versions that are not known ---------------------------------------------------------------------------------


def newer(document: dict[str, Any]) -> None:
    """A document of the next version, which need not be arranged as this one is."""
    following = VERSION + 1
    document.clear()
    document.update(check="0" * 32, version=following, contents=["something else"])


@pytest.fixture
def of_a_newer_version(version: str, tmp_path: Path) -> list[Path]:
    """A file and a folder whose headers, with digests that hold, say that they are of the next version."""
    file, folder = tmp_path / "model.safetensors", tmp_path / "folder"
    shutil.copy(NATIVE / version / "int4-g32.safetensors", file)
    shutil.copytree(NATIVE / version / "folder", folder)
    for path in (file, *folder.glob("*.safetensors")):
        change_header(path, newer)
    return [file, folder]


@pytest.mark.parametrize(("command", "code"), [
    (["inspect"], 1), (["inspect", "--recipe"], 1), (["dequantize", "-o", "out"], 1),
    (["export", "--to", "compressed-tensors", "-o", "out"], 1), (["quantize", "-o", "out"], 1),
    (["plan", "--target-bpw", "9"], 1), (["sweep"], 1), (["report"], 2), (["compare", "same"], 2), (["verify"], 2),
])  # fmt: skip
def test_newer_versions_are_refused(
    command: list[str], code: int, of_a_newer_version: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in of_a_newer_version:
        words = [path if word == "same" else word for word in command[1:]]
        line = one_line(run(command[0], path, *words), code)
        assert line.startswith(str(path)) and ("use a newer quantcli" in line or "start from the original" in line)
        if command[0] not in ("quantize", "plan", "sweep"):
            assert "quantcli header: format version 5 is unknown, this quantcli reads versions up to 4; " in line
        assert not (tmp_path / "out").exists()
        with pytest.raises(quantcli.DataError, match="format version 5 is unknown"):
            quantcli.open(str(path))


def test_a_damaged_version_is_damage(version: str, tmp_path: Path) -> None:
    """Where the header no longer has the digest it was written with, verify finds a fault, not another version."""
    shutil.copy(NATIVE / version / "int4-g32.safetensors", tmp_path / "model.safetensors")
    change_header(tmp_path / "model.safetensors", lambda document: document.update(version=5), seal=False)
    ran = run("verify", tmp_path / "model.safetensors")
    assert ran.code == 1 and "FAILED" in ran.out and "format version 5 is unknown" in ran.err


# ---- make golden -------------------------------------------------------------------------------------------------


def test_files_of_a_released_version_are_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"int4": {"sha256": {"int4.safetensors": "0"}}, "int8": {}}
    assert write_native.is_released("0.1.0") and not write_native.is_released("0.1")
    others: list[dict[str, Any]] = [{"int8": {}}, {"int4": {"sha256": {"int4.safetensors": "1"}}, "int8": {}}]
    for index in others:
        with pytest.raises(SystemExit, match=r"0\.1\.0 is released, and these files of it would change: int4\n"):
            write_native.refuse_changes("0.1.0", known, index)
        write_native.refuse_changes("999.0", known, index)
    write_native.refuse_changes("0.1.0", known, {**known, "new": {}})
