"""Files are completed one at a time and in order, in a bucket beside the making of the next one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self


_PATIENCE = 1.0
"""Seconds to wait for an answer after a signal: what it was about is given up."""


class _GivenUpError(Exception):
    """A signal has ended the run, and so what is left to do of a file is not done."""


class Completion:
    """What is left to do of a file once its last weight is made: it is sent, looked at and recorded.

    beside: whether that goes on while the next file is made, which pays where it is waiting for a server: over a link
    of 50 ms a file takes 0.5 s to be complete, in which nothing would be read. Else a file is complete before the next
    one begins. Leaving the context waits for the last file; after a signal it gives it up instead.

    >>> done = []
    >>> with Completion(beside=True) as after:
    ...     after.begin(lambda: done.append("first"))
    ...     after.begin(lambda: done.append("second"))
    >>> done
    ['first', 'second']
    """

    def __init__(self, *, beside: bool) -> None:
        self._beside, self._over = beside, False
        self._last: Future[None] | None = None
        self._give_up: Callable[[], None] = lambda: None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.wait()
            elif isinstance(error, Exception) and self._last is not None:
                wait([self._last])  # its own error, if it has one, is not the first
        except BaseException as later:
            if not isinstance(later, Exception):
                self._abandon()
            raise
        if error is not None and not isinstance(error, Exception):
            self._abandon()

    def _abandon(self) -> None:
        """Give up the last file, because a signal has ended the run."""
        if self._last is not None:
            self._over = True
            self._give_up()
            wait([self._last], _PATIENCE)

    def begin(self, complete: Callable[[], None], give_up: Callable[[], None] = lambda: None) -> None:
        """Complete a file, once the one before is complete. give_up: ends requests that are waited for. Raises the
        error of the file before."""
        self.wait()
        if not self._beside:
            complete()
            return
        done: Future[None] = Future()
        self._last, self._give_up = done, give_up

        def run() -> None:
            try:
                complete()
                done.set_result(None)
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=run, daemon=True).start()

    def check(self) -> None:
        """Raise the error of the last file, where there is one by now."""
        if self._last is not None and self._last.done():
            self._last.result()

    def wait(self) -> None:
        """Wait until the last file is complete. Raises its error."""
        if self._last is not None:
            wait([self._last])
            self._last.result()

    def raise_if_given_up(self) -> None:
        """Raise an error where a signal has ended the run: no further step of completing the file is taken then."""
        if self._over:
            raise _GivenUpError


AT_ONCE = Completion(beside=False)
"""Each file is complete when it is written."""
