"""Run the sample of mutants against the tests of their own modules, and write what survived to RESULTS.md.

Every mutant is a process forked from one that has imported the libraries, but not the package: an import hook gives it
the changed source, and pytest runs the module's tests up to the first failure. That takes half a second of processor
time where the tests are fast.

Why a runner of our own, by the documentation of the usual ones: mutmut changes bodies of functions only, not the
constants and tables of a module, takes no fixed sample, and learns from one run of the whole suite (13 minutes) which
tests are for what; cosmic-ray changes files in place, has one command of tests for all modules and starts a new
Python for every mutant (1.4 s of imports).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType

import yaml
from mutation.areas import AREAS, SAMPLE
from mutation.mutants import Mutant, sample
from mutation.sandbox import available, confine, limit

ROOT = Path(__file__).resolve().parents[2]
RESULTS, ACCEPTED = Path(__file__).with_name("RESULTS.md"), Path(__file__).with_name("accepted.yaml")
PASSED, FAILED, NO_COLLECTION = 0, 1, 2
IDLE = 60.0
"""Seconds without any processor time after which a mutant is taken to wait for ever."""
UNMUTATED_LIMIT = 600
"""Seconds of processor time for the tests of a file without a mutant."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the tests of a file ended. seconds: of processor time; output: what pytest printed."""

    killed: bool
    how: str
    seconds: float
    output: str


class _Loader(SourceFileLoader):
    """Loads one module from other source."""

    def __init__(self, name: str, path: str, source: bytes) -> None:
        super().__init__(name, path)
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._source, self.path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    """Finds one module of the package as it was changed."""

    def __init__(self, mutant: Mutant) -> None:
        path = ROOT / mutant.file
        parts = path.relative_to(ROOT).with_suffix("").parts
        self._name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        self._loader = _Loader(self._name, str(path), mutant.source(path.read_bytes()))

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return (
            spec_from_file_location(fullname, self._loader.path, loader=self._loader)
            if fullname == self._name
            else None
        )


def warm() -> None:
    """Import what the tests import, apart from the package; processes forked later need not."""
    import importlib

    for name in (
        "pytest", "numpy", "hypothesis.strategies", "ml_dtypes", "safetensors.numpy", "click", "rich.console",
        "xxhash", "jsonschema", "concurrent.futures", "hypothesis.extra.numpy", "doctest", "junitparser", "xmlschema",
    ):  # fmt: skip
        importlib.import_module(name)
    from hypothesis import Phase, settings

    settings.register_profile(
        "mutants", deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate], database=None,
        suppress_health_check=list(__import__("hypothesis").HealthCheck),
    )  # fmt: skip
    assert not any(name.split(".")[0] == "quantcli" for name in sys.modules)


def _become(mutant: Mutant | None, tests: Sequence[str], folder: Path, seconds: int) -> int:
    """In a process of its own: the status of pytest on the tests of a mutant."""
    os.setsid()
    out = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
    for number in (1, 2):
        os.dup2(out, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(
        TMPDIR=str(folder), HOME=str(folder), HYPOTHESIS_PROFILE="mutants",
        PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", PYTHONDONTWRITEBYTECODE="1",
        HYPOTHESIS_STORAGE_DIRECTORY=str(folder / "hypothesis"),
    )  # fmt: skip
    sys.dont_write_bytecode, tempfile.tempdir = True, None
    os.chdir(folder)
    limit(seconds)
    confine(folder)
    if mutant is not None:
        sys.meta_path.insert(0, _Finder(mutant))
    import pytest

    options = ["-x", "-q", "--tb=line", "--no-header", f"--rootdir={ROOT}", "-c", str(ROOT / "pyproject.toml")]
    options += [f"--basetemp={folder / 'pytest'}", "-pno:cacheprovider", "-Wignore::pytest.PytestAssertRewriteWarning"]
    return int(pytest.main([*options, *(str(ROOT / test) for test in tests)]))


@dataclass(slots=True)
class _Running:
    """A process that is at work. moved: when its processor time was last seen to grow."""

    job: tuple[Mutant | None, Sequence[str]]
    folder: Path
    moved: float
    used: float = 0.0
    idle: bool = False


def _time_of(process: int) -> float:
    """Processor time of a process so far, with that of its children that ended."""
    try:
        values = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return sum(map(int, values[11:15])) / os.sysconf("SC_CLK_TCK")


def _start(mutant: Mutant | None, tests: Sequence[str], seconds: int) -> tuple[int, Path]:
    folder = Path(tempfile.mkdtemp(prefix="mutant-"))
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process, folder
    status = 70
    try:
        status = _become(mutant, tests, folder, seconds)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _outcome(running: _Running, status: int, seconds: float) -> Outcome:
    output = (running.folder / "output").read_text(errors="replace") if (running.folder / "output").exists() else ""
    if running.idle:
        return Outcome(True, "waited", seconds, output)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        how = "time" if number in (signal.SIGXCPU, signal.SIGKILL) else signal.Signals(number).name
        return Outcome(True, how, seconds, output)
    code = os.WEXITSTATUS(status)
    if code not in (PASSED, FAILED, NO_COLLECTION) and running.job[0] is None:
        raise SystemExit(f"pytest ended with {code}:\n{output}")
    return Outcome(code != PASSED, "tests" if code in (FAILED, NO_COLLECTION) else f"status {code}", seconds, output)


def outcomes(
    jobs: Sequence[tuple[Mutant | None, Sequence[str], int]], at_once: int, told: bool = True
) -> list[Outcome]:
    """The outcomes of mutants (None: the module as it is), their tests and their limits, so many at once."""
    found: dict[int, Outcome] = {}
    running: dict[int, tuple[int, _Running]] = {}
    waiting = list(enumerate(jobs))[::-1]
    while waiting or running:
        while waiting and len(running) < at_once:
            number, (mutant, tests, seconds) = waiting.pop()
            process, folder = _start(mutant, tests, seconds)
            running[process] = number, _Running((mutant, tests), folder, time.monotonic())
        for process, (number, state) in list(running.items()):
            ended, status, usage = os.wait4(process, os.WNOHANG)
            if not ended:
                used, now = _time_of(process), time.monotonic()
                if used > state.used:
                    state.used, state.moved = used, now
                elif now - state.moved > IDLE:
                    state.idle = True
                    os.killpg(process, signal.SIGKILL)
                continue
            del running[process]
            with contextlib.suppress(ProcessLookupError):  # what it started and left
                os.killpg(process, signal.SIGKILL)
            found[number] = _outcome(state, status, usage.ru_utime + usage.ru_stime)
            shutil.rmtree(state.folder, ignore_errors=True)
            mutant = state.job[0]
            if told and mutant is not None:
                what = f"killed ({found[number].how})" if found[number].killed else "SURVIVED"
                print(f"{len(found)}/{len(jobs)} {what} {mutant.file}:{mutant.line} {mutant.after}", flush=True)
        time.sleep(0.02)
    return [found[number] for number in range(len(jobs))]


def chosen(names: Sequence[str]) -> dict[str, list[Mutant]]:
    """The sample of each area."""
    return {name: sample(ROOT, list(AREAS[name]), SAMPLE[name]) for name in names}


def limits(files: Mapping[str, Sequence[str]], at_once: int) -> dict[str, int]:
    """Seconds for the mutants of each file: twice its tests without a mutant, and five. Exits if they fail."""
    sets = sorted({tuple(tests) for tests in files.values()})
    found = outcomes([(None, tests, UNMUTATED_LIMIT) for tests in sets], at_once)
    for tests, outcome in zip(sets, found):
        if outcome.killed:
            raise SystemExit(f"without a mutant these tests fail ({outcome.how}): {' '.join(tests)}\n{outcome.output}")
        print(f"{outcome.seconds:6.1f} s without a mutant: {' '.join(tests)}", flush=True)
    known = {tests: outcome.seconds for tests, outcome in zip(sets, found)}
    return {file: int(5 + 2 * known[tuple(tests)]) for file, tests in files.items()}


def accepted() -> dict[tuple[str, str, str, str], str]:
    """The reasons of mutants that no test can tell from the code, or need not."""
    entries = yaml.safe_load(ACCEPTED.read_text()) or []
    return {(e["file"], e["function"], e["before"], e["after"]): e["reason"] for e in entries}


def section(
    area: str, results: Sequence[tuple[Mutant, Outcome]], known: Mapping[tuple[str, str, str, str], str]
) -> str:
    """The part of RESULTS.md about an area: its figures, and a diff of each survivor."""
    alive = [m for m, o in results if not o.killed]
    excused = sum(m.key in known for m in alive)
    figures = f"{len(results)} mutants, {len(results) - len(alive)} killed, {excused} accepted"
    lines = [f"## {area}", "", f"{figures}, {len(alive) - excused} survived.", ""]
    for mutant in alive:
        reason = known.get(mutant.key)
        lines += [f"`{mutant.file}`, {mutant.function or 'module'}{': ' + reason if reason else ''}", "", "```diff"]
        lines += [f"- {line}" for line in mutant.before.split("\n")] + [
            f"+ {line}" for line in mutant.after.split("\n")
        ]
        lines += ["```", ""]
    return "\n".join(lines)


def report(earlier: str, sections: Mapping[str, str]) -> str:
    """RESULTS.md: a table of all areas, and their sections; those of areas that did not run stay as they were."""
    parts = re.split(r"^(?=## )", earlier, flags=re.MULTILINE)[1:]
    known = {part[3 : part.index("\n")]: part.rstrip() + "\n" for part in parts} | dict(sections)
    known = {area: known[area] for area in AREAS if area in known}
    lines = [
        "# Mutants of the code, and what the tests make of them", "",
        "Written by `make mutate`; `accepted.yaml` has the reasons of the accepted ones.", "",
        "| area | mutants | killed | accepted | survived |", "|---|---|---|---|---|",
    ]  # fmt: skip
    totals = [0, 0, 0, 0]
    for area, text in known.items():
        row = [int(number) for number in re.findall(r"^\d+|(?<=, )\d+", text.split("\n")[2])]
        totals = [a + b for a, b in zip(totals, row)]
        lines.append(f"| {area} | {' | '.join(map(str, row))} |")
    lines += [f"| together | {' | '.join(map(str, totals))} |", ""]
    share, fair = totals[1] / max(totals[0], 1), totals[1] / max(totals[0] - totals[2], 1)
    lines += [f"Killed: {share:.1%} of all, {fair:.1%} of those that are not accepted.", ""]
    missing = [area for area in AREAS if area not in known]
    lines += [f"Not run yet: {', '.join(missing)}.", ""] if missing else []
    return "\n".join([*lines, "\n".join(known.values())]).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("areas", nargs="*", help=f"all without any; others keep their results: {', '.join(AREAS)}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at once")
    parser.add_argument("--list", action="store_true", help="print the sample and end")
    parser.add_argument("--only", default="", help="mutants of files or lines with this text")
    given = parser.parse_args()
    names = given.areas or list(AREAS)
    found = {k: [m for m in v if given.only in m.file or given.only in m.after] for k, v in chosen(names).items()}
    if given.list:
        for mutant in [m for own in found.values() for m in own]:
            print(f"{mutant.file}:{mutant.line}: {mutant.before}  ->  {mutant.after}")
        return
    if not available():
        raise SystemExit(
            "mutants run only where Linux has Landlock (6.2 or later): elsewhere they could write anywhere"
        )
    tests = {file: own for name in names for file, own in AREAS[name].items()}
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.nice(10)
    warm()
    seconds = limits({m.file: tests[m.file] for own in found.values() for m in own}, given.jobs)
    every = [(area, m) for area, own in found.items() for m in own]
    results = outcomes([(m, tests[m.file], seconds[m.file]) for _, m in every], given.jobs)
    known, by_area = accepted(), dict[str, str]()
    for area in found:
        by_area[area] = section(area, [(m, o) for (a, m), o in zip(every, results) if a == area], known)
        print(by_area[area])
    if not given.only:
        RESULTS.write_text(report(RESULTS.read_text() if RESULTS.exists() else "", by_area))


if __name__ == "__main__":
    main()
