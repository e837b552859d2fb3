"""The lock of a destination in a bucket: a small object that the run which writes renews every 20 seconds.

Buckets of every kind have it, each with requests of its own (`Cells`): an object is only created where there is none,
and only replaced where it still is the one that was read.
"""

from __future__ import annotations

import json
import os
import platform
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from quantcli.errors import QuantcliError

BEAT, DEAD = 20.0, 120.0
"""Seconds after which a lock is renewed, and after which one that was not is taken over."""


class ExistsError(Exception):
    """There is an object already, or it is not the one that was expected."""


@dataclass(frozen=True, slots=True)
class Small:
    """A small object: its content, its ETag, and seconds since it was written, by the clock of the server."""

    content: bytes
    tag: str
    age: float


class Cells(Protocol):
    """Small objects of a bucket: what one kind has for them."""

    def put(self, url: str, content: bytes, *, create: bool = False, match: str | None = None) -> str: ...
    def get(self, url: str) -> Small | None: ...
    def delete(self, urls: Sequence[str]) -> None: ...


class Lock:
    """The lock of a destination. cells: the objects of its kind of bucket. Raises QuantcliError where another run holds
    it."""

    def __init__(self, url: str, shown: str, cells: Cells) -> None:
        self._url, self._shown, self._cells = url, shown, cells
        self._ended, self.lost = threading.Event(), False
        own = {"machine": _machine(), "process": os.getpid(), "run": os.urandom(8).hex()}
        self._text = json.dumps(own).encode()
        try:
            self._tag = cells.put(url, self._text, create=True)
        except ExistsError:
            self._tag = self._taken_over()
        threading.Thread(target=self._renew, daemon=True).start()

    def _taken_over(self) -> str:
        """The tag of the lock, which another run has left; or which is this run's, for an answer was lost."""
        found = self._cells.get(self._url)
        try:
            if found is None:
                return self._cells.put(self._url, self._text, create=True)
            if found.content == self._text:
                return found.tag
            if found.age < DEAD and not _dead(found.content):
                hint = f"wait until it has ended; one that was killed is forgotten after {DEAD:.0f} s"
                raise QuantcliError("another run is writing it", place=[self._shown], hint=hint)
            return self._cells.put(self._url, self._text, match=found.tag)
        except ExistsError:
            if (own := self._own()) is not None:
                return own.tag
            raise QuantcliError("another run is writing it", place=[self._shown], hint="wait until it ends") from None

    def _own(self) -> Small | None:
        """The lock, where it is this run's."""
        found = self._cells.get(self._url)
        return found if found is not None and found.content == self._text else None

    def _renew(self) -> None:
        while not self._ended.wait(BEAT):
            with suppress(QuantcliError):  # the next one may succeed; `check` finds out
                try:
                    self._tag = self._cells.put(self._url, self._text, match=self._tag)
                except ExistsError:
                    own = self._own()
                    if own is None:
                        self.lost = True
                        return
                    self._tag = own.tag

    def check(self) -> None:
        """Raise QuantcliError where another run has taken the lock over."""
        if self.lost or self._own() is None:
            self.lost = True
            hint = "this one did not answer for too long; the other one goes on"
            raise QuantcliError("another run has taken over", place=[self._shown], hint=hint)

    def end(self) -> None:
        """Give the lock back."""
        self._ended.set()
        if not self.lost:
            with suppress(QuantcliError):
                self._cells.delete([self._url])


def _machine() -> str:
    """What tells this machine, since it was started, from all others; empty where that is not known."""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return f"{platform.node()} {file.read().strip()} {os.stat('/proc/self/ns/pid').st_ino}"
    return ""


def _dead(text: bytes) -> bool:
    """Whether the holder of a lock was a process of this machine that is no more."""
    with suppress(ValueError, KeyError, TypeError, AttributeError, OverflowError):
        held = json.loads(text)
        if held["machine"] and held["machine"] == _machine() and held["process"] != os.getpid():
            try:
                os.kill(int(held["process"]), 0)
            except ProcessLookupError:
                return True
            except OSError:
                return False
    return False
