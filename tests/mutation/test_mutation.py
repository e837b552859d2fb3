"""The runner of mutants: what it changes, that its sample is fixed, and that a mutant can neither hang nor write."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mutation.areas import AREAS, SAMPLE
from mutation.mutants import mutants, sample
from mutation.run import Outcome, report, section
from mutation.sandbox import available

ROOT = Path(__file__).resolve().parents[2]
landlock = pytest.mark.skipif(not available(), reason="needs Landlock (Linux 6.2)")


def inside(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """What a confined process with a second of processor time does."""
    begin = "import os, sys; from pathlib import Path; from mutation.sandbox import confine, limit\n"
    begin += f"limit(1); confine(Path({str(folder)!r}))\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    return subprocess.run([sys.executable, "-c", begin + code], capture_output=True, text=True, env=environment,
                          timeout=100, check=False)  # fmt: skip


@landlock
def test_a_mutant_cannot_run_for_ever(tmp_path: Path) -> None:
    assert inside(tmp_path, "while True: pass").returncode in (-signal.SIGXCPU, -signal.SIGKILL)


@landlock
@pytest.mark.parametrize("code", [
    "open({0!r}, 'a')", "os.remove({0!r})", "os.rename({0!r}, {0!r} + '2')", "os.truncate({0!r}, 0)",
    "os.mkdir({0!r} + '2')", "os.symlink('x', {0!r} + '2')", "os.rename({0!r}, 'moved')",
    "import subprocess; subprocess.run(['rm', {0!r}], check=True)",
])  # fmt: skip
def test_a_mutant_cannot_write_outside_its_folder(tmp_path: Path, code: str) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "precious").write_text("kept")
    found = inside(tmp_path / "own", f"os.chdir({str(tmp_path / 'own')!r}); open('x', 'w').write('x'); os.remove('x')\n"
                   + code.format(str(tmp_path / "precious")))  # fmt: skip
    assert found.returncode == 1 and ("denied" in found.stderr or "cross-device" in found.stderr), found
    assert sorted(os.listdir(tmp_path)) == ["own", "precious"] and (tmp_path / "precious").read_text() == "kept"


def test_what_is_changed(tmp_path: Path) -> None:
    """Operators, numbers, names, conditions and calls, each by itself; no text for people."""
    (tmp_path / "m.py").write_text(
        'LIMIT = 3\ndef f(x: int) -> int:\n    """Text 1 < 2."""\n    assert x < 9\n    if x <= LIMIT and x:\n'
        '        raise ValueError(f"{x + 1}")\n    g(x)\n    return -max(x, LIMIT) * 2 if not x else h("BF16")\n'
    )
    found = list(mutants(tmp_path, "m.py"))
    assert {m.after for m in found} == {
        "LIMIT = 4", "if x < LIMIT and x:", "if x > LIMIT and x:", "if x <= LIMIT or x:", "pass",
        "return max(x, LIMIT) * 2 if not x else h(\"BF16\")", "return -min(x, LIMIT) * 2 if not x else h(\"BF16\")",
        "return -max(x, LIMIT) // 2 if not x else h(\"BF16\")", "return -max(x, LIMIT) * 3 if not x else h(\"BF16\")",
        "return -max(x, LIMIT) * 2 if x else h(\"BF16\")", "return -max(x, LIMIT) * 2 if not x else h(\"XXBF16\")",
    }  # fmt: skip
    text = (tmp_path / "m.py").read_bytes()
    for mutant in found:
        compile(mutant.source(text), "m.py", "exec")


def test_the_sample_is_fixed_and_compiles() -> None:
    total = 0
    for area, files in AREAS.items():
        found = sample(ROOT, list(files), SAMPLE[area])
        assert found == sample(ROOT, list(files), SAMPLE[area])
        for mutant in found:
            compile(mutant.source((ROOT / mutant.file).read_bytes()), mutant.file, "exec")
        assert all((ROOT / test.split("::")[0]).exists() for tests in files.values() for test in tests)
        total += len(found)
    assert total == 710


def test_results_of_areas_that_did_not_run_stay(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("LIMIT = 3\nOTHER = True\n")
    first, second = mutants(tmp_path, "m.py")
    killed, alive = (Outcome(k, "tests", 1.0, "") for k in (True, False))
    known = {second.key: "no matter"}
    gates = report("", {"gates": section("gates", [(first, alive), (second, alive)], known)})
    assert "| gates | 2 | 0 | 1 | 1 |\n| together | 2 | 0 | 1 | 1 |" in gates and "module: no matter" in gates
    both = report(gates, {"codes": section("codes", [(first, killed), (second, killed)], known)})
    assert "| codes | 2 | 2 | 0 | 0 |\n| gates | 2 | 0 | 1 | 1 |\n| together | 4 | 2 | 1 | 1 |" in both
    assert "Killed: 50.0% of all, 66.7% of those" in both and "- LIMIT = 3\n+ LIMIT = 4" in both
    again = report(both, {"gates": section("gates", [(first, killed), (second, killed)], known)})
    assert "| together | 4 | 4 | 0 | 0 |" in again and "LIMIT" not in again
    assert report(again, {}) == again and "Not run yet: packing, grouping," in again
