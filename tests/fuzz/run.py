"""Fuzz the readers of files and the round trip: `make fuzz`, or

    python tests/fuzz/run.py [--seconds 600] [--target NAME]... [--folder .fuzz] [--seed 0]

With atheris installed (pip install atheris) inputs are chosen by what they reach in the code, else at random; it needs
up to a minute for its changes to the code whenever a process starts, so leave it the ten minutes. Each
target runs in a process of its own, of at most 1 GiB beyond what starting takes, and each input may take 10 seconds of
processor time. Findings go to FOLDER/TARGET/: the input made as small as it gets, and what went wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import pkgutil
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fuzz import mutate

SECONDS, MEMORY = 10, 1 << 30
"""What an input may take: seconds of processor time, bytes beyond what a process has at its start."""

PAUSE = 3
"""Seconds before the end at which no new process is started."""


def limited() -> None:
    """Limit the memory of this process."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Worker:
    """Tries inputs of a target, and keeps what it finds."""

    def __init__(self, name: str, folder: Path) -> None:
        from fuzz import targets

        self.trial = targets.trial
        self.target = targets.TARGETS[name]
        self.folder = folder
        self.count = 0
        self.known = {path.name for path in folder.iterdir() if path.is_dir()}
        self.target.beside()
        self.seeds = [s for s in self.target.seeds() if s]

    def one(self, data: bytes) -> None:
        """Try an input. It stays in the file `current` for the case that the process does not survive it."""
        (self.folder / "current").write_bytes(data)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # whose signal ends the process
        found = self.trial(self.target, data)
        signal.setitimer(signal.ITIMER_PROF, 0)
        self.count += 1
        (self.folder / "count").write_text(str(self.count))
        if found is None or found.name in self.known:
            return
        self.known.add(found.name)
        keep(self.folder / found.name, data, found.details)
        smallest = self.smaller(data, found.name)
        keep(self.folder / found.name, smallest, found.details)

    def smaller(self, data: bytes, name: str) -> bytes:
        """The input without the pieces that a finding does not need; half a minute at most."""
        until, step = time.monotonic() + 30, max(len(data) // 2, 1)
        while step and time.monotonic() < until:
            at = 0
            while at < len(data) and time.monotonic() < until:
                less = data[:at] + data[at + step :]
                found = self.trial(self.target, less)
                if found is not None and found.name == name:
                    data = less
                else:
                    at += step
            step //= 2
        return data

    def mutated(self, data: bytes, chance: random.Random) -> bytes:
        others = [chance.choice(self.seeds)]
        return mutate.mutated(data, self.target.how, chance, others)[: 1 << 20]


def keep(folder: Path, data: bytes, details: str) -> None:
    """Put a finding into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "input").write_bytes(data)
    (folder / "details.txt").write_text(details)


def work(name: str, seconds: float, seed: int, folder: Path) -> None:
    """Try inputs in this process for some seconds, in the current folder."""
    until = time.monotonic() + seconds
    try:
        import atheris
    except ImportError:
        atheris = None
    if atheris is None:
        worker = Worker(name, folder)
        limited()
        chance = random.Random(seed)
        for data in worker.seeds:
            worker.one(data)
        while time.monotonic() < until:
            worker.one(worker.mutated(chance.choice(worker.seeds), chance))
        return
    guided(atheris, name, seconds, seed, folder)


def guided(atheris: Any, name: str, seconds: float, seed: int, folder: Path) -> None:
    """As `work`, with atheris, which keeps inputs that reach something new in FOLDER/corpus."""
    import quantcli

    with atheris.instrument_imports(
        include=["quantcli"], exclude=["quantcli.kernels.records"], enable_loader_override=False
    ):
        for module in pkgutil.walk_packages(quantcli.__path__, "quantcli."):  # within a trial its time would count
            if not module.name.endswith(("__main__", "_kernels")):
                importlib.import_module(module.name)
        worker = Worker(name, folder)
        (folder / "corpus").mkdir(exist_ok=True)
        for data in worker.seeds:
            (folder / "corpus" / hashlib.sha1(data).hexdigest()).write_bytes(data)
        limited()

        def mutator(data: bytes, most: int, number: int) -> bytes:
            chance = random.Random(number)
            return worker.mutated(data if chance.random() < 0.8 else chance.choice(worker.seeds), chance)[:most]

        flags = [f"-max_total_time={max(1, int(seconds))}", f"-seed={seed + 1}", "-rss_limit_mb=0"]
        flags += ["-max_len=1048576", f"-artifact_prefix={folder}/"]
        quiet = [
            "-verbosity=0",
            "-print_final_stats=0",
            "-len_control=0",
            f"-artifact_prefix={folder}/",
            "-timeout=3600",
        ]
        atheris.Setup(["fuzz", str(folder / "corpus"), *flags, *quiet], worker.one, custom_mutator=mutator)
        atheris.Fuzz()


def fuzz(name: str, seconds: float, seed: int, folder: Path) -> int:
    """Fuzz a target in processes of its own. Returns how many inputs were tried."""
    folder.mkdir(parents=True, exist_ok=True)
    until, tried = time.monotonic() + seconds, 0
    while (left := until - time.monotonic()) > (PAUSE if tried else 0):
        (folder / "count").write_text("0")
        (folder / "current").unlink(missing_ok=True)
        words = [sys.executable, __file__, "--work", name, "--seconds", str(left), "--seed", str(seed + tried)]
        place = tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        try:
            ended = subprocess.run([*words, "--folder", folder], cwd=place, stderr=subprocess.PIPE, check=False)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        count = int((folder / "count").read_text() or 0)
        tried += count
        if ended.returncode == 0:
            continue
        if not (folder / "current").exists():
            sys.exit(f"{name}: the target does not start:\n{ended.stderr.decode(errors='replace')}")
        data, error = (folder / "current").read_bytes(), ended.stderr[-20000:].decode(errors="replace")
        slow = ended.returncode == -signal.SIGPROF
        what = "slow" if slow else f"ended-{ended.returncode}"
        keep(folder / f"{what}-{hashlib.sha1(data).hexdigest()[:8]}", data, error)
    return tried


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz the readers of files and the round trip.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--target", action="append", help="the name of a target; all where none is named")
    parser.add_argument("--folder", type=Path, default=Path(".fuzz"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        work(asked.work, asked.seconds, asked.seed, asked.folder)
        return
    from fuzz.targets import TARGETS

    unknown = [name for name in asked.target or () if name not in TARGETS]
    if unknown:
        sys.exit(f"no target {unknown[0]}; there are {', '.join(TARGETS)}")
    bad = 0
    for name in asked.target or TARGETS:
        folder = (asked.folder / name).resolve()
        tried = fuzz(name, asked.seconds, asked.seed, folder)
        findings = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name != "corpus")
        print(f"{name}: {tried} inputs, {len(findings)} findings", *findings, sep="\n    ", flush=True)
        bad += len(findings)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
