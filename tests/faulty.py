"""Runs a command again and again, with one fault each time: a program for `test_interrupts.py`.

    python faulty.py '{"arguments": ["quantize", ...], "box": FOLDER, "fault": "signal", "number": 2, ...}'

The fault comes at the first call into the box (creating, writing, renaming, removing something there), in the next run
at the second call, and so on until a run has ended before its fault. Every run is a fork of this process, so that it
costs little. Printed is a JSON list of what each run left.

fault: "before" and "after" (a signal arrives before or after the call; `again`: at each further call too), "error" (the
call fails with EIO), "kill" (SIGKILL before the call; what a second run leaves is in the answer too), "line" (a signal
arrives at a line of the modules that clean up). first, step: the number of the first fault, and how far it is to the
next. old: "file" or "folder" where the output exists already. no_exchange: as where two folders cannot be swapped at
once. files: a folder to copy into the box before each run. then: words of a second run, after any fault.

library: the library of faulty.c, which this program was started with; the fault then comes at calls of the C library,
of these names (calls; empty: all) on files in these folders (below; empty: all files). Further faults are "short" (half
of what was asked is read or written) and "cut" (a file ends there). number: of the error or signal; lasts: whether all
further calls meet it.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

CALLS = ("open", "close", "mkdir", "link", "rename", "replace", "unlink", "rmdir", "fsync", "write", "pwrite",
         "posix_fallocate", "fchmod")  # fmt: skip
MODULES = ("interrupts.py", "workspace.py", "folder.py", "files.py", "write.py", "quantize.py", "export.py",
           "output.py")  # fmt: skip


class Faults:
    """Patches `os` so that the call of this number meets the fault."""

    def __init__(self, spec: dict[str, Any], nth: int, report: int) -> None:
        self.box, self.fault, self.nth, self.report = spec["box"], spec["fault"], nth, report
        self.number, self.again = spec.get("number", signal.SIGINT), spec.get("again", False)
        self.count, self.files = 0, dict[int, str]()
        self.real = {name: getattr(os, name) for name in CALLS}
        for name in CALLS:
            setattr(os, name, self.patched(name))

    def patched(self, name: str) -> Callable[..., Any]:
        real = self.real[name]

        def call(*arguments: Any, **named: Any) -> Any:
            path = str(self.files.get(arguments[0]) if isinstance(arguments[0], int) else arguments[0])
            if not path.startswith(self.box) and "dir_fd" not in named:
                return real(*arguments, **named)
            self.count += 1
            hit = self.count == self.nth or (self.again and self.count > self.nth)
            if self.count == self.nth:
                self.real["write"](self.report, f"{name} {os.path.relpath(path, self.box)}".encode())
            if hit and self.fault == "error":
                if name == "close":
                    real(*arguments, **named)
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            if hit and self.fault in ("before", "kill"):
                os.kill(os.getpid(), signal.SIGKILL if self.fault == "kill" else self.number)
            try:
                # What is tried here is not the disk.
                found: Any = None if name == "fsync" else real(*arguments, **named)
                if name == "open":
                    self.files[found] = path
            finally:
                if hit and self.fault == "after":
                    os.kill(os.getpid(), self.number)
            return found

        return call


KINDS = {"error": b"e", "short": b"s", "cut": b"z", "before": b"b", "kill": b"b", "after": b"a"}


def arm(spec: dict[str, Any], nth: int, report: int) -> None:
    """Have the call of this number meet the fault."""
    below, names = ":".join(spec.get("below", ())), "".join(f",{name}" for name in spec.get("calls", ()))
    number = signal.SIGKILL if spec["fault"] == "kill" else spec.get("number", signal.SIGINT)
    library = ctypes.CDLL(spec["library"])
    kind = ctypes.c_char(KINDS[spec["fault"]])
    library.fault_arm(f"{names},".encode() if names else b"", below.encode(), kind, int(number), ctypes.c_long(nth),
                      int(spec.get("lasts", False)), report)  # fmt: skip


def trace(nth: int, number: int, report: int) -> Callable[..., Any]:
    """Lets a signal arrive at the line of this number."""
    count = 0

    def local(frame: Any, event: str, _: Any) -> Any:
        nonlocal count
        if event == "line":
            count += 1
            if count == nth:
                where = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
                os.write(report, where.encode())
                os.kill(os.getpid(), number)
        return local

    def called(frame: Any, event: str, _: Any) -> Any:
        return local if os.path.basename(frame.f_code.co_filename) in MODULES else None

    return called


def run(spec: dict[str, Any], nth: int, words: str = "arguments") -> dict[str, Any]:
    """One run: where the fault came (empty: it had not come by the end), how the run ended, what it left. words: where
    those of its command line are."""
    read, report = os.pipe()
    with tempfile.TemporaryFile(dir=Path(spec["box"]).parent) as errors:
        child = os.fork()
        if not child:
            for number in (signal.SIGHUP, signal.SIGTERM):  # which nohup, or whoever runs the tests, may ignore
                signal.signal(number, signal.SIG_DFL)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(errors.fileno(), 2)
            sys.stderr = os.fdopen(2, "w", closefd=False)
            sys.argv = ["quantcli", *spec[words]]
            from quantcli.__main__ import main

            if nth and spec["fault"] == "line":
                sys.settrace(trace(nth, spec.get("number", signal.SIGINT), report))
            elif nth and "library" in spec:
                arm(spec, nth, report)
            elif nth:
                Faults(spec, nth, report)
            try:
                main()
            except SystemExit as done:
                sys.stderr.flush()
                os._exit(done.code if isinstance(done.code, int) else 0)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(99)
        os.close(report)
        _, status = os.waitpid(child, 0)
        with os.fdopen(read, "rb") as pipe:
            where = pipe.read().decode()
        errors.seek(0)
        box, out = Path(spec["box"]), Path(spec["output"])
        own = (out.name, *spec.get("also", ())) if out.exists() else ()
        left = sorted(set(os.listdir(box)) - set(own))
        return {"where": where, "code": os.waitstatus_to_exitcode(status), "errors": errors.read().decode(),
                "left": left, "journal": [n for n in left if (box / n / "journal").exists()],
                "output": content(out)}  # fmt: skip


def content(path: Path) -> str | None:
    """What a file or folder holds, short; None where there is none."""
    if not os.path.lexists(path):
        return None
    found = hashlib.sha256()
    for file in sorted([path, *path.rglob("*")]):
        if file.is_file():
            found.update(f"{file.relative_to(path)}\0".encode() + file.read_bytes())
    return found.hexdigest()[:8]


def fresh(spec: dict[str, Any]) -> None:
    """An empty box, or one with an old output in it."""
    box, out = Path(spec["box"]), Path(spec["output"])
    shutil.rmtree(box, ignore_errors=True)
    box.mkdir()
    if "files" in spec:
        shutil.copytree(spec["files"], box, dirs_exist_ok=True)
    if spec.get("old") == "folder":
        out.mkdir()
    if spec.get("old"):
        (out / "old" if out.is_dir() else out).write_text("old")


def main() -> None:
    """Answer the specification on the command line."""
    spec = json.loads(sys.argv[1])
    import safetensors
    import xxhash
    import yaml

    import quantcli
    from quantcli import kernels

    assert safetensors and xxhash and yaml

    package = Path(quantcli.__file__).parent
    for file in package.rglob("[!_]*.py"):  # or each run would do it again
        importlib.import_module(".".join(["quantcli", *file.relative_to(package).with_suffix("").parts]))
    kernels.load()
    fresh(spec)
    runs: list[dict[str, Any]] = []
    found = {"old": content(Path(spec["output"])), "whole": run(spec, 0), "runs": runs}
    step = spec.get("step", 1)
    nth = spec.get("first", step)
    while True:
        fresh(spec)
        one = run(spec, nth)
        if not one["where"]:
            break
        if "then" in spec:
            one["second"] = run(spec, 0, "then") if one["output"] in (None, found["old"]) else None
        elif spec["fault"] == "kill":
            one["second"] = run(spec, 0) if one["output"] in (None, found["old"]) else None
        runs.append(one)
        nth += step
    print(json.dumps(found))


if __name__ == "__main__":
    main()
