"""Signals such as Ctrl-C: whenever they arrive, temporary files are removed, then the signal ends the process.

A signal becomes an exception, so `with` blocks clean up as they do after any error. That leaves two gaps: a signal
can arrive between making a file and entering the block that removes it, or while that block cleans up. Code that makes
something temporary therefore calls `remember` with the function that removes it; whatever has not been forgotten by
the end is removed then, with further signals ignored.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGXCPU", "SIGUSR1", "SIGUSR2")
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
"""Those that a user, a terminal, a limit of processor time or a scheduler of jobs sends to end a run."""

_owed: dict[Callable[[], None], None] = {}
_depth = 0
_waiting: int | None = None


class Terminated(BaseException):
    """A signal arrived that is not Ctrl-C."""

    def __init__(self, number: int) -> None:
        self.number = number


def remember(clean: Callable[[], None]) -> None:
    """Have `clean` called if a signal ends the process; it may have been called before, in full or in part."""
    _owed[clean] = None


def forget(clean: Callable[[], None]) -> None:
    """Take `clean` off the list: it has nothing left to do."""
    _owed.pop(clean, None)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Signals that arrive inside are raised at the end, so that an action and its record stay together; they never
    interrupt another thread than the main one."""
    global _depth, _waiting
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if not _depth and _waiting is not None:
            number, _waiting = _waiting, None
            _arrived(number, None)


def run(command: Callable[[], NoReturn]) -> NoReturn:
    """Run a command to its end, which is SystemExit or the signal that arrived."""
    before: dict[int, Any] = {}
    try:
        try:
            _install(before)
            command()
        except (KeyboardInterrupt, Terminated):
            raise
        except BaseException:  # SystemExit, or with --debug the error itself
            _restore(before)
            raise
    except KeyboardInterrupt:
        die_by(signal.SIGINT)
    except Terminated as signalled:
        die_by(signalled.number)


def die_by(number: int) -> NoReturn:
    """Remove what is temporary and end as the signal would have ended us, so that a shell or make sees it."""
    main = threading.current_thread() is threading.main_thread()
    for other in SIGNALS if main else ():
        signal.signal(other, signal.SIG_IGN)
    while _owed:
        clean = next(reversed(_owed))
        with contextlib.suppress(Exception):
            clean()
        _owed.pop(clean, None)
    if main:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(128 + number)


def _install(before: dict[int, Any]) -> None:
    """Take over the signals that would end the process, and store their previous handlers in `before`."""
    global _depth, _waiting
    _depth, _waiting = 0, None
    if threading.current_thread() is not threading.main_thread():
        return
    for number in SIGNALS:
        found = signal.getsignal(number)
        if found in (signal.SIG_DFL, signal.default_int_handler):  # under nohup, for one, SIGHUP is ignored
            before[number] = found
            signal.signal(number, _arrived)


def _restore(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)


def _arrived(number: int, _: FrameType | None) -> None:
    global _waiting
    if _ending():
        return
    if _depth:
        _waiting = number
    elif number == signal.SIGINT:
        raise KeyboardInterrupt
    else:
        raise Terminated(number)


def _ending() -> bool:
    """Whether the main thread is cleaning up after a signal: a second Ctrl-C must not cut that short."""
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, (KeyboardInterrupt, Terminated)):
            return True
        error = error.__context__
    return False
