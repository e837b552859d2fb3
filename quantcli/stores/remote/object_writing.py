"""Outputs on Google Cloud Storage and Azure: each file is made on this machine, and sent as an object that appears only
when it is complete.

What makes a folder whole (index, config.json, model card) is sent last. Where an output is replaced, these go first.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from quantcli.errors import QuantcliError, UsageError
from quantcli.stores import remote
from quantcli.stores.remote.cloud import STORE, problem_of
from quantcli.stores.remote.reading import retried
from quantcli.stores.remote.spool import LAST, SpooledKind

PART, FLIGHTS = 8 << 20, 3
"""Bytes of a part of an object, and parts under way at a time."""

T = TypeVar("T")


class ObjectSink:
    """Objects below a URL, or the one at a URL."""

    def __init__(self, url: str, folder: bool) -> None:
        self.url, self._folder = url, folder
        self._store, self._key = STORE.bucket(url)
        self._sent: list[str] = []
        self._old: list[str] = []

    def _call(self, call: Callable[[], T]) -> T:
        """What a call of obstore returns, made again for as long as its problem may pass. Raises QuantcliError."""

        def attempt() -> T:
            try:
                return call()
            except QuantcliError:
                raise
            except Exception as error:
                raise problem_of(error, self.url) from None

        try:
            return retried(attempt, self.url)
        except remote.MissingError:
            raise QuantcliError("no such bucket, or no access to it", place=[self.url]) from None

    def _named(self, name: str) -> str:
        """The key of a file of the output."""
        return f"{self._key}/{name}" if self._folder else os.path.join(os.path.dirname(self._key), name)

    def check(self, *, force: bool) -> None:
        """Raise UsageError where there is an output already and `force` is not given, QuantcliError where nothing can
        be written."""
        import obstore

        def listed() -> list[str]:
            return [m["path"] for block in obstore.list(self._store, prefix=f"{self._key}/") for m in block]

        self._old = self._call(listed)
        taken = self._is_file()
        if taken and self._folder:
            raise UsageError("the output exists and is not a folder", place=[self.url])
        if self._old and not self._folder:
            raise UsageError("the output is a folder", place=[self.url], hint="name a file in it")
        if (taken or self._old) and not force:
            raise UsageError("the output exists", place=[self.url], hint="use --force to replace it")

    def _is_file(self) -> bool:
        """Whether there is an object of this very name."""
        try:
            STORE.open(self.url).close()
        except (remote.MissingError, remote.DeniedError):
            return False
        return True

    def begin(self, *, force: bool) -> None:
        """Take away what makes an old folder whole, where it is replaced."""
        import obstore

        self.check(force=force)
        first = [key for key in self._old if key.endswith(".index.json") or os.path.basename(key) in LAST]
        if first:
            self._call(lambda: obstore.delete(self._store, first))

    def send(self, name: str, path: str) -> None:
        """Send a file. Raises QuantcliError."""
        import obstore

        key = self._named(name)
        self._call(lambda: obstore.put(self._store, key, Path(path), chunk_size=PART, max_concurrency=FLIGHTS))
        self._sent.append(key)

    def rename(self, old: str, new: str) -> None:
        """Rename an object."""
        import obstore

        before, after = self._named(old), self._named(new)
        self._call(lambda: obstore.rename(self._store, before, after))
        self._sent[self._sent.index(before)] = after

    def publish(self) -> None:
        """Remove the objects of the old output that do not belong to this one."""
        import obstore

        gone = [key for key in self._old if key not in self._sent]
        if gone:
            self._call(lambda: obstore.delete(self._store, gone))
        remote.forget()

    def abandon(self) -> None:
        """Remove what was sent, as far as that is possible."""
        import obstore

        with contextlib.suppress(Exception):
            if self._sent:
                obstore.delete(self._store, self._sent)
        remote.forget()


WRITER = SpooledKind(ObjectSink)
