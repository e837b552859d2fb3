"""Where outputs are written: folders of this machine, and places behind URLs that can be written to.

All that writes a model asks here for a file, a folder or the hidden folder beside one, and gets one of this machine or
one behind a URL by the path alone. What a kind of place must have is said by the protocols below:

    OutputFile      takes bytes at any offset, from several threads, and appears when it is published
    OutputFolder    takes files and small texts, remembers what is finished, and appears when it is published
    HiddenFolder    the place beside an output in which it is made, used by one run at a time

What is in a hidden folder can be read under `temp` by everything that reads models, a path or a URL as the output is.
"""

from __future__ import annotations

import importlib
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from quantcli.errors import UsageError
from quantcli.stores import files, folder, places, remote, workspace
from quantcli.stores.files import InputFile

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self


WRITERS = {"s3": "bucket", "gs": "object_writing", "az": "object_writing", "hf": "hub_writing"}
"""The module for each scheme of a URL that outputs are written to."""

IN_STEPS = ("s3",)
"""Schemes where a later run finds what an earlier one has finished: for --resume, --part and --dask."""


class OutputFile(Protocol):
    """A file that takes its name only when it is complete. temp: where its bytes can be read once it is synced. Leaving
    the context without `publish` leaves nothing behind."""

    path: str
    temp: str
    size: int
    force: bool

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def write(self, offset: int, data: memoryview | bytes | bytearray) -> None:
        """Write all of `data` at `offset`; safe from several threads. No byte is written twice."""

    def copy(self, file: InputFile, start: int, offset: int, size: int) -> None:
        """Write `size` bytes of another file, from byte `start` of it, at `offset`: by the place itself where it can,
        without moving them."""

    def sync(self) -> None:
        """Declare that all bytes are written: from now on they can be read at `temp`."""

    def publish(self) -> None:
        """Give the file its name; it appears at once and whole."""

    def withdraw(self) -> None:
        """Remove a file that was published, because others that belong to it could not be."""

    def discard(self) -> None:
        """Remove what is not published."""


class HiddenFolder(Protocol):
    """The place in which an output is made, used by one run at a time. folder: where it is."""

    folder: str

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def clear(self) -> None:
        """Remove what a run that was killed has left."""


class OutputFolder(Protocol):
    """A folder that appears only when it is complete. temp: where it is made, and its files can be read. found: the
    journal of an interrupted run, None where there was none. hold: whether an error leaves what an interrupted run has
    finished. Leaving the context without `publish` removes everything, unless files are finished that another run can
    go on with. in_place: whether a file in it counts only once those of `write` are there, so that it is made where it
    will be."""

    path: str
    temp: str
    found: bytes | None
    hold: bool

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def begin(self, keep: Collection[str]) -> None:
        """Start with exactly these files of the interrupted run."""

    def make(self, name: str) -> None:
        """Make a subfolder, of an empty name the folder itself."""

    def record(self, journal: bytes, *, more: bool = False) -> None:
        """Record what has been finished: it is kept if the run is interrupted from now on. more: further lines of the
        journal, of which the last may be cut short by an error or a kill."""

    def write(self, name: str, content: bytes | Iterable[bytes]) -> None:
        """Write a small file, or a text in pieces."""

    def copy(self, name: str, file: InputFile) -> None:
        """Copy a file of any size."""

    def rename(self, old: str, new: str) -> None:
        """Rename a file of the folder."""

    def take(self, name: str, path: str) -> bool:
        """Take over a finished file from elsewhere without copying its bytes; whether that is possible."""

    def finished(self, name: str) -> None:
        """Declare that a file is complete: places that are sent one file at a time send it, others check in `publish`
        that it is still the same. Raises QuantcliError where it is not there."""

    def publish(self) -> None:
        """Give the folder its name, with all its files. Raises QuantcliError where somebody has removed or changed
        one that was finished."""


class Kind(Protocol):
    """A kind of place behind a URL that outputs are written to."""

    def file(self, path: str, size: int, *, force: bool, within: str | None, joined: bool) -> OutputFile:
        """A file to write. within: the hidden folder in which it is made; None to make one. joined: whether most of it
        is in other files."""

    def folder(self, path: str, *, force: bool, in_place: bool) -> OutputFolder:
        """A folder to write."""

    def hidden(self, path: str, *, force: bool) -> HiddenFolder:
        """The hidden folder beside an output."""

    def check(self, path: str, *, force: bool, folder: bool) -> None:
        """Raise UsageError where there is an output already and `force` is not given, QuantcliError where nothing can
        be written. folder: whether the output is one."""

    def check_space(self, path: str, room: int, largest: int, source: str) -> None:
        """Raise QuantcliError where there is no room for so many bytes at a time, UsageError where a file of `largest`
        bytes is not taken."""

    def sizes(self, folder: str) -> Mapping[str, int]:
        """Bytes of all files below a folder as they are now, by path below it."""

    def remove(self, path: str) -> None:
        """Remove a folder with its contents, if it exists."""

    def resumable(self, path: str) -> bool:
        """Whether an interrupted run has left finished files of an output folder."""


def writable(path: str) -> str:
    """A path that an output can be written to, of a URL without a slash at its end. Raises UsageError for URLs that
    nothing is written to, and leaves out what may be secret in them."""
    if not places.is_url(path) and not places.is_foreign(path):
        return path
    scheme = path.partition("://")[0]
    if scheme not in WRITERS:
        kinds = ", ".join(f"{name}://" for name in WRITERS)
        raise UsageError(
            f"nothing is written to {scheme}://", place=[_shown(path)], hint=f"name a path, or a URL of {kinds}"
        )
    if scheme == "hf":
        from quantcli.stores.remote.hub import parsed

        parsed(path)
        return path.rstrip("/")
    bucket, _, key = path.partition("://")[2].rstrip("/").partition("/")
    if not bucket or not key or any(step in ("", ".", "..") for step in key.split("/")):
        hint = f"it has the form {scheme}://bucket/folder or {scheme}://bucket/file.safetensors"
        raise UsageError("an output needs a name in a bucket", place=[path], hint=hint)
    return path.rstrip("/")


def prepare(path: str) -> None:
    """Import what writes a URL while an answer about its source is waited for, where that takes long."""
    if remote.scheme_of(path) == "s3":
        remote.meanwhile(lambda: importlib.import_module("quantcli.stores.remote.s3").ready(path))


def _shown(path: str) -> str:
    return re.sub("://[^/@]*@", "://", path.partition("?")[0])


def _kind(path: str) -> Kind:
    """The kind of place that a URL names. Raises UsageError where what writes there is not installed."""
    module = importlib.import_module(f"quantcli.stores.remote.{WRITERS[remote.scheme_of(writable(path))]}")
    found: Kind = module.WRITER
    return found


# ---- writing ----------------------------------------------------------------------------------------------------


def file(
    path: str, size: int, *, force: bool, within: str | None = None, sparse: bool = False, joined: bool = False
) -> OutputFile:
    """A file to write. within: the hidden folder in which it is made, of a file in an output folder that folder; None
    for one of its own. sparse: whether much of it stays empty; joined: whether most of it is in other files."""
    if places.is_url(path):
        return _kind(path).file(path, size, force=force, within=within, joined=joined)
    return files.OutputFile(path, size, force=force, within=within, sparse=sparse)


def output_folder(path: str, *, force: bool, in_place: bool = False) -> OutputFolder:
    """A folder to write. in_place: as OutputFolder has it; folders of this machine are renamed at no cost."""
    if places.is_url(path):
        return _kind(path).folder(path, force=force, in_place=in_place)
    return folder.OutputFolder(path, force=force)


def hidden(path: str, *, force: bool) -> AbstractContextManager[HiddenFolder]:
    """The hidden folder beside an output, which keeps other runs from it while it is open. Raises QuantcliError where
    another run has it."""
    if places.is_url(path):
        return _kind(path).hidden(path, force=force)
    return workspace.Workspace(path, force=force)


@contextmanager
def cleared(path: str, *, force: bool) -> Iterator[str]:
    """A hidden folder beside a file to write, emptied of what a run that was killed has left in it."""
    with hidden(path, force=force) as found:
        found.clear()
        yield found.folder


def has_holes(path: str) -> bool:
    """Whether a file may have bytes that nobody has written, which take no room: objects in buckets have no such."""
    return not places.is_url(path)


# ---- what may be written ----------------------------------------------------------------------------------------


def check_file(path: str, *, force: bool, sources: Sequence[InputFile]) -> str:
    """The real path of a file to write. Raises UsageError, DataError and QuantcliError as files.check_destination."""
    if not places.is_url(path):
        return files.check_destination(path, force=force, sources=list(sources))
    path = writable(path)
    if any(source.path == path for source in sources):
        raise UsageError("output and input are the same file", place=[path], hint="choose another name with -o")
    _kind(path).check(path, force=force, folder=False)
    return path


def check_folder(path: str, *, force: bool, source: str) -> str:
    """The real path of a folder to write. Raises UsageError and QuantcliError as folder.check_folder."""
    if not places.is_url(path):
        return folder.check_folder(path, force=force, source=source)
    path = writable(path)
    if places.real(source).rstrip("/") == path:
        raise UsageError("output and input are the same folder", place=[path], hint="choose another name with -o")
    _kind(path).check(path, force=force, folder=True)
    return path


def check_space(
    path: str, size: int, source: str, *, largest: Callable[[], int] | None = None, together: bool = False
) -> None:
    """Raise QuantcliError where there is no room for what is made from `source`, as far as that is known before.
    largest: bytes of the largest file of an output that has several; together: whether they are made at once."""
    if places.is_url(path):
        most = size if largest is None else largest()
        _kind(path).check_space(path, size if together else most, most, source)
    else:
        files.check_space(path, size, source)


def is_sent(path: str) -> bool:
    """Whether a file is made on this machine and sent when it is published, which may take long."""
    return places.is_url(path) and remote.scheme_of(path) not in IN_STEPS


def check_parts(path: str, *option: str) -> None:
    """Raise UsageError for an output that cannot be made of parts, or by several processes. option: what asks for
    that."""
    if is_sent(path):
        problem = f"outputs of {remote.scheme_of(path)}:// are made by one process, not of parts"
        raise UsageError(problem, place=[path, *option], hint="name a folder or s3://, and copy the result")


def resuming(path: str) -> str | None:
    """What --resume does not do for an output folder; None where it continues after finished files. Raises UsageError
    where it does nothing."""
    if not is_sent(path):
        return None
    if remote.scheme_of(path) == "hf":
        return f"{path}: all is computed again, and what the hub has already is not uploaded again"
    problem = f"runs that write to {remote.scheme_of(path)}:// cannot be resumed"
    raise UsageError(problem, place=[path, "--resume"], hint="leave it out, or name a folder or s3://")


def make_private(path: str) -> None:
    """Make the repository of an output on the hub, private, where there is none. Raises UsageError for one that is
    public, QuantcliError where it cannot be made."""
    from quantcli.stores.remote.hub_writing import HubSink

    HubSink(path, folder=True).make_private()


def check_card(path: str, content: bytes) -> None:
    """Raise UsageError where the hub would refuse, at the end of a run, the front matter of a model card."""
    if places.is_url(path) and remote.scheme_of(path) == "hf":
        from quantcli.stores.remote.hub_writing import HubSink

        HubSink(path, folder=True).check_card(content)


# ---- what is there ----------------------------------------------------------------------------------------------


def sizes(path: str) -> Mapping[str, int]:
    """Bytes of all files below a folder as they are now, by path below it; empty where there is none."""
    if places.is_url(path):
        return _kind(path).sizes(path)
    inside = (os.path.join(inner, name) for inner, _, names in os.walk(path) for name in names)
    return {os.path.relpath(one, path): os.path.getsize(one) for one in inside if os.path.isfile(one)}


def remove(path: str) -> None:
    """Remove a folder with its contents as far as that is possible."""
    if places.is_url(path):
        _kind(path).remove(path)
    else:
        workspace.remove(path, strict=False)


def left_over(path: str) -> str | None:
    """The hidden folder that an interrupted run on an output folder has left, if there is one to go on with, which
    another run does not do already."""
    found = workspace.partial_of(path)
    if places.is_url(path):
        return found if _kind(path).resumable(path) else None
    left = workspace.is_own(os.path.join(found, "journal"), stat.S_ISREG) and not workspace.is_held(found)
    return found if left else None


def remains(path: str) -> str | None:
    """The hidden folder in which something is left of an output folder that was replaced and could not be removed; None
    where there is none."""
    found = workspace.partial_of(path)
    gone = places.is_url(path) or not os.path.isdir(found) or workspace.is_held(found)
    return None if gone else found


# ---- parts of a folder --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """The part of an output folder that one model fills: names in it are those of its files."""

    out: OutputFolder
    name: str = ""

    @classmethod
    def of(cls, out: OutputFolder, name: str) -> Part:
        """The subfolder of this name, which is made; of an empty name the folder itself."""
        out.make(name)
        return cls(out, name)

    def named(self, name: str) -> str:
        """The name in the whole folder of a file of this part."""
        return os.path.join(self.name, name)

    @property
    def temp(self) -> str:
        """Where it is made."""
        return os.path.join(self.out.temp, self.name) if self.name else self.out.temp

    @property
    def path(self) -> str:
        """Where it will be."""
        return os.path.join(self.out.path, self.name) if self.name else self.out.path

    def write(self, name: str, content: bytes | Iterable[bytes]) -> None:
        """Write a small file, or a text in pieces."""
        self.out.write(self.named(name), content)

    def rename(self, old: str, new: str) -> None:
        """Rename a file."""
        self.out.rename(self.named(old), self.named(new))
