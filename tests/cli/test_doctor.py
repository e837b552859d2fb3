"""doctor: what it says is what the machine, the library and pip say, and it never fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from making import ROOT, environment, on_a_terminal, one_line, run, run_process

from quantcli import library, registry

DIGITS = ROOT / "sample_models" / "digits.safetensors"


def test_the_facts_are_those_of_the_machine() -> None:
    ran = run("doctor", "--json")
    found = ran.json
    version = run_process("--version").out.strip()
    assert ran.code == 0 and version == f"quantcli {found['version']} ({found['kernels']} kernels)"
    assert found["processors"] == os.cpu_count() and found["threads"] == len(os.sched_getaffinity(0))
    assert found["memory"] == pytest.approx(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), rel=0.01)
    places = {p["name"]: p for p in found["places"]}
    assert places["temporary folder"]["path"] == tempfile.gettempdir()
    assert places["current folder"]["free"] == pytest.approx(shutil.disk_usage(".").free, rel=0.05)
    assert [t["name"] for t in found["targets"]] == list(registry.names("layouts", "WRITES"))
    declared = metadata.metadata("quantcli").get_all("Provides-Extra") or []
    assert [e["name"] for e in found["extras"]] == declared and "onnx" in declared
    packages = {name: v for extra in found["extras"] for name, v in extra["packages"].items()}
    assert packages["pytest"] == metadata.version("pytest")
    assert "](" not in ran.out and "`" not in ran.out


def test_no_line_is_wider_than_the_terminal() -> None:
    """80 columns: texts are divided into lines that begin below each other. In a pipe lines have 100 characters."""
    shown = on_a_terminal("doctor", NO_COLOR="1")
    lines = [line for line in shown.splitlines() if "/" not in line]  # paths stay whole
    assert "\x1b" not in shown and max(map(len, lines)) <= 80 < max(map(len, told_of_targets()))
    words = " ".join(shown.split())
    assert all(" ".join(fact.split()) in words for fact in told_of_targets())
    assert max(len(line) for line in run("doctor").out.splitlines() if "/" not in line) <= 100


def told_of_targets() -> list[str]:
    """What programs get to read of each target."""
    return [target["needs"] for target in run("doctor", "--json").json["targets"]]


def test_every_target_has_packages_or_none_by_intent() -> None:
    from quantcli.passes.diagnose import PACKAGES

    assert set(PACKAGES) <= set(registry.names("layouts", "WRITES"))


@pytest.mark.skipif(library.opened() is None, reason="no native kernels")
def test_why_a_variant_is_used_or_not() -> None:
    ran = run_process("doctor", "--json")
    variants = {v["name"]: v for v in ran.json["variants"]}
    functions = library.opened()
    assert functions is not None
    runs = library.runnable(functions)
    assert [name for name, v in variants.items() if v["used"]] == [runs[-1]]
    assert [name for name, v in variants.items() if v["runs"]] == runs
    assert all("lacks" in v["why"] for v in variants.values() if not v["runs"])
    for forced, kernels, word in (("base", "native-base", ""), ("numpy", "numpy", "asks for numpy")):
        found = run_process("doctor", "--json", QUANTCLI_KERNELS=forced).json
        assert found["kernels"] == kernels and word in found["problem"]
        assert [v["name"] for v in found["variants"] if v["used"]] == ([forced] if forced == "base" else [])


def test_wrong_settings_and_stale_libraries_are_told_not_raised(tmp_path: Path) -> None:
    ran = run_process("doctor", QUANTCLI_KERNELS="fast")
    assert ran.code == 0 and "'fast' is not a set of kernels" in ran.out
    program = (
        "import sys\nfrom quantcli import library\n"
        "def stale(): raise library.of_another_version()\nlibrary.opened = stale\n"
        "from quantcli.cli import main\nmain(['doctor'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment())
    assert done.returncode == 0 and "built from another version of quantcli" in done.stdout
    ran = run("doctor", "-o", tmp_path / "a.md", "-q")
    assert ran.out == "" and "kernels" in (tmp_path / "a.md").read_text()
    assert run("doctor", "-o", tmp_path / "a.csv", "-q").code == 0


def test_folders_in_which_nothing_can_be_written_are_told(tmp_path: Path) -> None:
    """Python takes another folder without a word where TMPDIR cannot be written to."""
    found = run_process("doctor", "--json", TMPDIR=str(tmp_path / "none")).json
    assert (
        found["places"][0]["path"] != str(tmp_path / "none") and str(tmp_path / "none") in found["places"][0]["problem"]
    )
    shown = run_process("doctor", TMPDIR=str(tmp_path / "none")).out
    assert "where nothing can be written" in " ".join(shown.split())
    assert [place["problem"] for place in run_process("doctor", "--json", TMPDIR=str(tmp_path)).json["places"]] == [
        "",
        "",
    ]


def test_a_current_folder_that_was_removed(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    line = f"cd {tmp_path / 'gone'} && rmdir {tmp_path / 'gone'} && {sys.executable} -m quantcli doctor"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0 and "it was removed" in done.stdout, done


def test_a_read_only_file_system_is_called_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where quantize asks whether it may write; access() says no more than that it may not."""
    real = os.statvfs
    monkeypatch.setattr(os, "access", lambda _, mode: not mode & os.W_OK)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_RDONLY, f_blocks=real(path).f_blocks))
    line = one_line(run("quantize", DIGITS, "-o", tmp_path / "out.safetensors"), 1)
    assert "out.safetensors: read-only file system" in line
    monkeypatch.setattr(os, "statvfs", real)
    assert "permission denied" in one_line(run("quantize", DIGITS, "-o", tmp_path / "out.safetensors"), 1)
