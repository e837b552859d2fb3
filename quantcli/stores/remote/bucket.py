"""Outputs in buckets: made under hidden keys beside the destination, and copied to their names by the bucket itself.

Of an output `models/w4` everything lies below `models/.w4.quantcli-partial/`:

    lock          who is writing, renewed every 20 seconds
    journal       what of a folder is finished
    folder/...    the files of a folder, each an object that appeared when it was complete
    publishing    there while files are copied to their names

A bucket has no renaming of folders. So files of weights are copied first and config.json last: until then no loader
takes the folder. A run that is killed while it copies leaves `publishing`, and the next one removes what it copied.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby
from types import TracebackType

from quantcli import interrupts
from quantcli.errors import DataError, QuantcliError, UsageError
from quantcli.stores import remote
from quantcli.stores.complete import no_longer
from quantcli.stores.files import InputFile, another_created
from quantcli.stores.remote import s3
from quantcli.stores.remote.lock import ExistsError, Lock
from quantcli.stores.remote.reading import RemoteFile
from quantcli.stores.remote.upload import Upload
from quantcli.stores.workspace import partial_of

_COPY = 1 << 22


class _Hidden:
    """The hidden folder beside a destination, used by one run at a time. found: the journal of a run that was
    interrupted; left: the names of all that such a run has left, until that is removed."""

    def __init__(self, path: str, *, force: bool) -> None:
        self.path, self.folder = path, partial_of(path)
        self.keep, self._closed = True, False
        self.left: list[str] | None = None
        self._last: list[str] | None = None
        with interrupts.deferred():
            self.lock = Lock(f"{self.folder}/lock", path, s3)
            interrupts.remember(self.close)
        try:
            self.found, publishing, self.left, taken, *_ = s3.together(
                lambda: s3.get(f"{self.folder}/journal"),
                lambda: s3.get(f"{self.folder}/publishing"),
                lambda: list(s3.listed(f"{self.folder}/")),
                lambda: not force and s3.any_of(path),
                lambda: s3.abort_below(f"{self.folder}/"),
                # There is none: who may not delete is refused now, and not when all is done.
                lambda: s3.delete([f"{self.folder}/nothing"]),
            )
            self.keep = self.found is not None
            if publishing is not None:
                _delete_below(path)
                s3.delete([f"{self.folder}/publishing"])
            elif taken:
                raise another_created(path)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> _Hidden:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def clear(self) -> None:
        """Remove what a run that was killed has left."""
        self.keep = False
        left = s3.listed(f"{self.folder}/") if self.left is None else self.left
        s3.delete([f"{self.folder}/{name}" for name in left if name != "lock"])
        self.left = None

    def published(self) -> None:
        """Say that all files have their names; what is left here is removed when it is closed."""
        self.keep = False  # first: a signal here would leave all files twice, and --resume would refuse the output
        _, self._last = s3.together(
            lambda: s3.delete([f"{self.folder}/publishing"]), lambda: list(s3.listed(f"{self.folder}/"))
        )

    def close(self) -> None:
        """Give the folder back, and remove what is in it unless that is worth keeping."""
        if self._closed:
            return
        self._closed, self.left = True, self._last
        if not self.lock.lost:
            clear = [] if self.keep else [self.clear]
            with suppress(QuantcliError):
                s3.together(lambda: s3.abort_below(f"{self.folder}/"), *clear)
        self.lock.end()
        remote.forget(self.path)
        remote.forget(self.folder)
        interrupts.forget(self.close)


def _delete_below(url: str, names: Iterable[str] | None = None) -> None:
    """Delete an object and all below it; what loaders look for first. names: of what is below it, where known."""
    _delete_ranked(f"{url}/", s3.listed(f"{url}/") if names is None else names, [url])


def _delete_ranked(prefix: str, names: Iterable[str], last: Sequence[str] = ()) -> None:
    """Delete objects of a folder, all of a rank at once; what loaders look for first. last: URLs of others that are
    deleted with the last of them."""
    ranked = groupby(sorted(names, key=_rank, reverse=True), key=lambda name: _rank(name)[0])
    waves = [[f"{prefix}{name}" for name in same] for _, same in ranked] or [[]]
    for wave in waves[:-1]:
        s3.delete(wave)
    s3.delete([*waves[-1], *last])


def _rank(name: str) -> tuple[int, str]:
    """The order in which files of a folder get their names: what leads a loader to the others comes last."""
    leads = ("config.json", "model_index.json", "modules.json", "finished.json")
    return (3 if name in leads else 2 if name.endswith(".index.json") else 1 if name.endswith(".json") else 0), name


def _found(url: str, shown: str) -> tuple[int, str]:
    """Bytes and ETag of an object that was finished. Raises QuantcliError where it is gone; shown: its name in the
    output."""
    found = s3.tagged(url).get("")
    if found is None:
        raise no_longer(shown)
    return found


# ---- files ------------------------------------------------------------------------------------------------------


class _File:
    """An object that takes its name only when it is complete; in an output folder it has its name, and the folder has
    not."""

    def __init__(self, path: str, size: int, *, force: bool, within: str | None, joined: bool = False) -> None:
        self.path, self.size, self.force = path, size, force
        folder, base = os.path.split(path)
        self._hidden = _Hidden(path, force=force) if within is None else None
        home = within or partial_of(path)
        self._stays = home == folder
        self.temp = path if self._stays else f"{home}/{os.urandom(4).hex()}-{base}"
        self._there = self._published = False
        self._upload = Upload(self.temp, size, path, joined=joined)
        interrupts.remember(self.discard)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def write(self, offset: int, data: memoryview | bytes | bytearray) -> None:
        """Write all of `data` at `offset`; safe from several threads."""
        self._upload.write(offset, data)

    def copy(self, file: InputFile, start: int, offset: int, size: int) -> None:
        """Write bytes of another file: the bucket copies those of an object that fill parts, and others are read."""
        begin = end = offset
        if isinstance(file, RemoteFile) and remote.scheme_of(file.path) == "s3":
            begin, end = self._upload.copied(file.path, file.transport.version, start, offset, size)
        for first, last in ((offset, begin), (end, offset + size)):
            for at in range(first, last, _COPY):
                self.write(at, file.read(start + at - offset, min(_COPY, last - at)))

    def sync(self) -> None:
        """Complete the upload: the object can be read at `temp`."""
        self._upload.finish()
        self._there = True
        remote.forget(self.temp)

    def publish(self) -> None:
        """Have the bucket copy the object to its name."""
        if not self._stays:
            held = [self._hidden.lock.check] if self._hidden is not None else []
            taken, *_ = s3.together(lambda: not self.force and s3.any_of(self.path), *held)
            if taken:
                raise another_created(self.path)
            try:
                s3.copy(self.temp, self.path, self.size, create=not self.force)
            except ExistsError:
                raise another_created(self.path) from None
        self._published = True
        remote.forget(self.path)

    def withdraw(self) -> None:
        """Remove the object that was published."""
        with suppress(QuantcliError):
            s3.delete([self.path])

    def discard(self) -> None:
        """Remove what is not published."""
        self._upload.abort()
        if self._there and not (self._stays and self._published):
            with suppress(QuantcliError):
                s3.delete([self.temp])
        self._there = False
        interrupts.forget(self.discard)
        if self._hidden is not None:
            self._hidden.close()


# ---- folders ----------------------------------------------------------------------------------------------------


class _Folder:
    """A folder in a bucket that loaders take only when it is complete; see destinations.OutputFolder."""

    def __init__(self, path: str, *, force: bool, in_place: bool) -> None:
        self.path, self.force, self._in_place = path, force, in_place
        self._hidden = _Hidden(path, force=force)
        found = self._hidden.found
        self.found = None if found is None else found.content
        self.hold = self._hidden.keep
        self.temp = path if in_place else f"{self._hidden.folder}/folder"
        self._from: dict[str, str] = {}
        self._finished: dict[str, tuple[int, str]] = {}
        self._texts: dict[str, bytes] = {}
        self._journal = b""

    def __enter__(self) -> _Folder:
        return self

    def begin(self, keep: Collection[str]) -> None:
        """Start with exactly these files of the interrupted run."""
        self._hidden.keep = bool(keep)
        left, self._hidden.left = self._hidden.left or [], None
        if not keep and "journal" in left:
            s3.delete([f"{self._hidden.folder}/journal"])
        if self._in_place:  # of others the hidden folder, in which they are made, has been cleared
            s3.abort_below(f"{self.temp}/")
            there = list(s3.listed(f"{self.temp}/"))
        else:
            there = [name.partition("/")[2] for name in left if name.startswith("folder/")]
        _delete_ranked(f"{self.temp}/", [name for name in there if name not in keep])
        remote.forget(self.temp)
        self.hold = False

    def make(self, name: str) -> None:
        """Nothing: buckets have no folders."""

    def record(self, journal: bytes, *, more: bool = False) -> None:
        """Record what has been finished: no object grows, so further lines are put with those before them."""
        self._journal = self._journal + journal if more else journal
        s3.put(f"{self._hidden.folder}/journal", self._journal)
        self._hidden.keep = True

    def write(self, name: str, content: bytes | Iterable[bytes]) -> None:
        """Keep a small file, or a text in pieces, until the folder is published."""
        self._texts[name] = content if isinstance(content, bytes) else b"".join(content)

    def copy(self, name: str, file: InputFile) -> None:
        """Upload a file of any size."""
        path = f"{self.temp}/{name}"
        with _File(path, file.size, force=True, within=os.path.dirname(path), joined=True) as out:
            out.copy(file, 0, 0, file.size)
            out.sync()
            out.publish()
        self.finished(name)

    def rename(self, old: str, new: str) -> None:
        """Remember that a file gets another name when it is copied."""
        self._from[new] = self._from.pop(old, f"{self.temp}/{old}")

    def take(self, name: str, path: str) -> bool:
        """Remember that a file is copied from elsewhere."""
        self._from[name] = path
        return True

    def finished(self, name: str) -> None:
        """Declare that a file is complete: `publish` checks that it is still the same object."""
        self._finished[name] = _found(f"{self.temp}/{name}", f"{self.path}/{name}")

    def _check_finished(self, here: Mapping[str, tuple[int, str]]) -> None:
        """Raise QuantcliError where somebody has removed or changed an object. here: those that are there."""
        for name, found in self._finished.items():
            if here.get(name) != found:
                raise no_longer(f"{self.path}/{name}")

    def publish(self) -> None:
        """Give the files their names, those last that lead loaders to the others."""
        jobs = dict[str, Callable[[], object]]()
        for name, text in self._texts.items():
            jobs[name] = partial(s3.put, f"{self.path}/{name}", text)
        if self._in_place:
            here, _ = s3.together(lambda: s3.tagged(f"{self.temp}/"), self._hidden.lock.check)
            self._check_finished(here)
        else:
            jobs |= self._copies()
        for _, same in groupby(sorted(jobs, key=_rank), key=lambda name: _rank(name)[0]):
            s3.together(*(jobs[name] for name in same))
        self._hidden.published()
        self.hold = False
        remote.forget(self.path)

    def _copies(self) -> dict[str, Callable[[], object]]:
        """What copies the files to their names, where nothing is any more."""
        here, old, taken, _ = s3.together(
            lambda: s3.tagged(f"{self.temp}/"),
            lambda: s3.listed(f"{self.path}/"),
            lambda: not self.force and s3.any_of(self.path),
            self._hidden.lock.check,
        )
        if taken:
            self._hidden.keep = self.hold = False
            raise another_created(self.path)
        self._check_finished(here)
        made = {f"{self.temp}/{name}": size for name, (size, _) in here.items()}
        for name, url in self._from.items():
            if url not in made:
                made[url] = _found(url, f"{self.path}/{name}")[0]
        s3.put(f"{self._hidden.folder}/publishing", b"")
        self._hidden.keep = True
        _delete_below(self.path, old)
        renamed = {url: name for name, url in self._from.items()}
        named = {renamed.get(url, url[len(self.temp) + 1 :]): url for url in made}
        return {name: partial(s3.copy, url, f"{self.path}/{name}", made[url]) for name, url in named.items()}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        fault = isinstance(error, (DataError, UsageError))  # running it again would fail the same way
        if error is None or (fault and not self.hold):
            self._hidden.keep = False
        if self._in_place and error is not None and not self._hidden.keep and not self._hidden.lock.lost:
            with suppress(QuantcliError):
                _delete_below(self.path)
        self._hidden.close()
        if isinstance(error, QuantcliError):
            error.place = [place.replace(self.temp, self.path, 1) for place in error.place]


class _Bucket:
    """Buckets of S3 as a kind of destination."""

    def file(self, path: str, size: int, *, force: bool, within: str | None, joined: bool) -> _File:
        """An object to write."""
        return _File(path, size, force=force, within=within, joined=joined)

    def folder(self, path: str, *, force: bool, in_place: bool) -> _Folder:
        """A folder to write."""
        return _Folder(path, force=force, in_place=in_place)

    def hidden(self, path: str, *, force: bool) -> _Hidden:
        """The hidden folder beside an output."""
        return _Hidden(path, force=force)

    def check_space(self, path: str, room: int, largest: int, source: str) -> None:
        """Nothing: buckets have no end, and S3 takes more than any plan has."""

    def check(self, path: str, *, force: bool, folder: bool) -> None:
        """Raise UsageError where there is an output already, QuantcliError where there is no such bucket."""
        there = s3.any_of(path)
        if there and not force and s3.get(f"{partial_of(path)}/publishing") is None:
            raise UsageError("the output exists", place=[path], hint="use --force to replace it")

    def sizes(self, folder: str) -> Mapping[str, int]:
        """Bytes of all objects below a folder, by path below it."""
        return s3.listed(f"{folder}/")

    def remove(self, path: str) -> None:
        """Remove all objects below a folder."""
        with suppress(QuantcliError):
            _delete_below(path)
        remote.forget(path)

    def resumable(self, path: str) -> bool:
        """Whether an interrupted run has left finished files of an output folder."""
        with suppress(QuantcliError):
            return s3.get(f"{partial_of(path)}/journal") is not None
        return False


WRITER = _Bucket()
