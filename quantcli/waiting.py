"""Calls that may take long, made in another thread: signals end the waiting, and so does the time that is given."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")


def interruptible(call: Callable[[], T], *, seconds: float | None = None) -> T:
    """What a call returns that may take long and lets no signal end it. Raises TimeoutError where it takes more than so
    many seconds; the call goes on.

    >>> interruptible(lambda: 3)
    3
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    if wait([done], seconds).not_done:
        raise TimeoutError
    return done.result()
