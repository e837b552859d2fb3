"""Outputs on Google Cloud Storage and Azure: each file is made on this machine, and sent as an object that appears only
when it is complete.

What makes a folder whole (index, config.json, model card) is sent last. Where an output is replaced, these go first.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from quantcli import interrupts
from quantcli.errors import QuantcliError, UsageError
from quantcli.stores import remote
from quantcli.stores.remote.cloud import STORE, problem_of
from quantcli.stores.remote.lock import ExistsError, Lock, Small
from quantcli.stores.remote.reading import give_way, retried
from quantcli.stores.remote.spool import LAST, SpooledKind
from quantcli.stores.workspace import partial_of
from quantcli.waiting import interruptible

PART, FLIGHTS = 8 << 20, 3
"""Bytes of a part of an object, and parts under way at a time."""

T = TypeVar("T")


class _Cells:
    """Small objects, as the lock of a destination needs them. A tag is what the bucket tells of a version, as JSON."""

    def put(self, url: str, content: bytes, *, create: bool = False, match: str | None = None) -> str:
        """Write one; its tag. create: only where there is none; match: only in place of the one of this tag. Raises
        ExistsError."""
        import obstore

        store, key = STORE.bucket(url)
        mode: Any = "create" if create else "overwrite" if match is None else json.loads(match)

        def written() -> str:
            try:
                found = obstore.put(store, key, content, mode=mode)
            except (obstore.exceptions.AlreadyExistsError, obstore.exceptions.PreconditionError):
                raise ExistsError from None
            return _tag(found)

        return _called(written, url)

    def get(self, url: str) -> Small | None:
        """One with its tag and age; None where there is none."""
        import obstore

        store, key = STORE.bucket(url)

        def read() -> Small | None:
            try:
                found = obstore.get(store, key)
                content, meta = bytes(found.bytes()), found.meta
            except FileNotFoundError:
                return None
            return Small(content, _tag(meta), (datetime.now(timezone.utc) - meta["last_modified"]).total_seconds())

        return _called(read, url)

    def delete(self, urls: Sequence[str]) -> None:
        """Delete some."""
        import obstore

        for url in urls:
            store, key = STORE.bucket(url)

            def delete(store: Any = store, key: str = key) -> None:
                with contextlib.suppress(FileNotFoundError):
                    obstore.delete(store, key)

            _called(delete, url)


def _tag(told: Mapping[str, Any]) -> str:
    """What a bucket tells of a version of an object: Azure an ETag alone, Google a generation too."""
    return json.dumps({name: told[name] for name in ("e_tag", "version") if told.get(name) is not None})


def _called(call: Callable[[], T], url: str) -> T:
    """What a call of obstore returns, made again for as long as its problem may pass. Raises QuantcliError."""

    def attempt() -> T:
        try:
            return call()
        except (QuantcliError, ExistsError):
            raise
        except Exception as error:
            raise problem_of(error, url) from None

    try:
        return retried(attempt, url)
    except remote.MissingError:
        raise QuantcliError("no such bucket, or no access to it", place=[url]) from None


class ObjectSink:
    """Objects below a URL, or the one at a URL."""

    def __init__(self, url: str, folder: bool) -> None:
        self.url, self._folder = url, folder
        self._store, self._key = STORE.bucket(url)
        self._lock: Lock | None = None
        self._sent: list[str] = []
        self._old: list[str] = []

    def _call(self, call: Callable[[], T]) -> T:
        return _called(call, self.url)

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
        """Lock the output, and take away what makes an old folder whole, where it is replaced."""
        import obstore

        give_way()
        with interrupts.deferred():
            self._lock = Lock(f"{partial_of(self.url)}/lock", self.url, _Cells())
            interrupts.remember(self._unlock)
        try:
            self.check(force=force)
            first = [key for key in self._old if key.endswith(".index.json") or os.path.basename(key) in LAST]
            if first:
                self._call(lambda: obstore.delete(self._store, first))
        except BaseException:
            self._unlock()
            raise

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.end()
        interrupts.forget(self._unlock)

    def send(self, name: str, path: str) -> None:
        """Send a file. Raises QuantcliError."""
        import obstore

        key = self._named(name)

        def put() -> None:
            obstore.put(self._store, key, Path(path), chunk_size=PART, max_concurrency=FLIGHTS)

        if self._lock is not None and os.path.basename(name) in LAST:
            self._lock.check()
        self._sent.append(key)
        self._call(lambda: interruptible(put))

    def rename(self, old: str, new: str) -> None:
        """Rename an object."""
        import obstore

        before, after = self._named(old), self._named(new)
        self._call(lambda: obstore.rename(self._store, before, after))
        self._sent[self._sent.index(before)] = after

    def publish(self) -> None:
        """Remove the objects of the old output that do not belong to this one."""
        import obstore

        if self._lock is not None:
            self._lock.check()
        gone = [key for key in self._old if key not in self._sent]
        if gone:
            self._call(lambda: obstore.delete(self._store, gone))
        self._unlock()
        remote.forget()

    def abandon(self) -> None:
        """Remove what was sent, as far as that is possible, unless another run has taken over."""
        import obstore

        with contextlib.suppress(Exception):
            if self._sent and self._lock is not None:
                self._lock.check()
                obstore.delete(self._store, self._sent)
        self._unlock()
        remote.forget()


WRITER = SpooledKind(ObjectSink)
