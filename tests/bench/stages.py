"""Where the processor time of a run goes: a command in one thread, its stages timed from within.

    python tests/bench/stages.py quantize MODEL -o OUTPUT --bits 4 -q

Prints seconds by stage as JSON. What Python does between the stages is the rest.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from timing import ENVIRONMENT

BEFORE, BETWEEN, AFTER = "start-up, header and plan", "Python between these", "header, check and report"
STAGES = {
    "read": ("quantcli.stores.files", "InputFile", ("read_into",)),
    "ranges, search, encoding and errors": ("quantcli.kernels.native", "NativeKernels", ("_call",)),
    "digest": ("quantcli.tensors.digest", "Chunks", ("add",)),
    "write": ("quantcli.stores.files", "OutputFile", ("write",)),
    "reserve, sync and rename": ("quantcli.stores.files", "OutputFile", ("__init__", "sync", "publish")),
}
"""The methods that make up a stage: module, class and names."""


def measured(command: Sequence[str]) -> dict[str, float]:
    """Seconds of a command by stage."""
    done = subprocess.run(
        [sys.executable, __file__, *command, "--threads", "1"],
        check=True, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


class Clock:
    """Adds up the time of stages; the time of one within another counts for the inner one."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys((BEFORE, *STAGES, BETWEEN, AFTER), 0.0)
        self._stage, self._since = BEFORE, 0.0

    def enter(self, stage: str) -> str:
        """Begin a stage; the one that was left."""
        now = time.process_time()
        self.seconds[self._stage] += now - self._since
        before, self._stage, self._since = self._stage, stage, now
        return before

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function as a stage."""

        @functools.wraps(function)
        def run(*arguments: Any, **named: Any) -> Any:
            before = self.enter(stage)
            try:
                return function(*arguments, **named)
            finally:
                self.enter(before)

        return run


def main(command: Sequence[str]) -> None:
    """Run a command of quantcli, and print what its stages took."""
    from importlib import import_module

    clock = Clock()
    for stage, (module, kind, names) in STAGES.items():
        owner = getattr(import_module(module), kind)
        for name in names:
            setattr(owner, name, clock.timed(stage, getattr(owner, name)))
    passes = import_module("quantcli.passes.write")
    walk = passes.walk

    def walked(*arguments: Any, **named: Any) -> None:
        clock.enter(BETWEEN)
        walk(*arguments, **named)
        clock.enter(AFTER)

    passes.walk = walked  # type: ignore[attr-defined]
    from quantcli.cli import main as run

    try:
        run([*command])
    except SystemExit as done:
        if done.code:
            raise
    clock.enter(AFTER)
    print(json.dumps(clock.seconds))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(sys.argv[1:])
