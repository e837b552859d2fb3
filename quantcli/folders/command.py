"""A command of the user's own, run so that whatever it starts ends with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from types import FrameType

from quantcli import interrupts

LAST = 1 << 20
"""Bytes of what a command prints that are held."""

PATIENCE = 2.0
"""Seconds that a command and what it started have to end themselves when the run is interrupted."""

HAS_GROUPS = hasattr(os, "killpg")
"""Whether all processes of a session can be sent a signal, as everywhere but on Windows."""


def ran(words: Sequence[str]) -> tuple[int, str]:
    """How a command ended, and the last lines of what it printed. It has no standard input and no terminal to read
    from; where the run is interrupted, it ends with all that it started in its session. Raises OSError where it cannot
    be run."""
    with interrupts.deferred():
        running = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0, start_new_session=HAS_GROUPS
        )
        end = partial(_end, running)
        interrupts.remember(end)
    printed, cut = bytearray(), False
    with running, _stopping_with_us(running.pid):
        assert running.stdout is not None
        try:
            while piece := running.stdout.read(1 << 16):
                printed += piece
                if len(printed) > 2 * LAST:
                    del printed[:-LAST]
                    cut = True
            running.wait()
        except BaseException:
            end()
            raise
        finally:
            interrupts.forget(end)
    begin = printed.find(b"\n") + 1 if cut else 0
    return running.returncode, printed[begin:].decode("utf-8", "replace").strip()


def _end(running: subprocess.Popen[bytes]) -> None:
    """End a command and all that it started: asked first, and killed where that does not help."""
    if not HAS_GROUPS:  # taskkill /F is the one way to end a tree of processes of Windows without their windows
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(running.pid)], capture_output=True, check=False)
        running.kill()
        return
    end = time.monotonic() + PATIENCE
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(running.pid, signal.SIGTERM)
        os.killpg(running.pid, signal.SIGCONT)  # what is stopped would not hear of it
        while time.monotonic() < end:
            running.poll()
            os.killpg(running.pid, 0)
            time.sleep(0.02)
        os.killpg(running.pid, signal.SIGKILL)


@contextlib.contextmanager
def _stopping_with_us(session: int) -> Iterator[None]:
    """Ctrl-Z, which only this process hears of, stops the processes of a session too, until this one goes on."""
    number = getattr(signal, "SIGTSTP", None)
    main = threading.current_thread() is threading.main_thread()
    if number is None or not main or signal.getsignal(number) != signal.SIG_DFL:
        yield
        return

    def stop(_: int, __: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(session, signal.SIGSTOP)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # returns when this process goes on
        signal.signal(number, stop)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(session, signal.SIGCONT)

    signal.signal(number, stop)
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_DFL)
