"""Where files are: paths of this machine, and URLs. Whoever reads a model asks here instead of the operating system.

Names are put together and taken apart by os.path, which does for URLs what it does for paths.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from quantcli.errors import DataError, QuantcliError, UsageError
from quantcli.stores import files, foreign, remote
from quantcli.stores.files import InputFile

AT_ONCE = 32
"""Remote files that are opened at a time: 300 shards at 50 ms take 15 s one by one."""

T = TypeVar("T")


def is_url(path: str) -> bool:
    """Whether a path is a URL that is read over a network.

    >>> is_url("hf://org/model"), is_url("models/model.safetensors")
    (True, False)
    """
    return "://" in path and bool(remote.scheme_of(path))


def is_foreign(path: str) -> bool:
    """Whether a path is a URL of a kind that is not supported.

    >>> is_foreign("ftp://host/model"), is_foreign("hf://org/model"), is_foreign("models/model.safetensors")
    (True, False, False)
    """
    return not is_url(path) and bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path)) and not os.path.lexists(path)


def reachable(path: str) -> str:
    """A path that means the same in every current folder; a URL, and standard input, as they are.

    >>> reachable("/models/a"), reachable("hf://org/model")
    ('/models/a', 'hf://org/model')
    """
    return path if path == "-" or is_url(path) else os.path.abspath(path)


def pinned(path: str) -> str:
    """The path of just what is read now, to be shown: a URL of the hub with the commit of its revision, one of a web
    server without its secrets. Raises UsageError for URLs of other kinds."""
    if is_url(path):
        return remote.store(path).pinned(path)
    if is_foreign(path):
        kinds = ", ".join(f"{scheme}://" for scheme in remote.SCHEMES)
        hint = f"these are: {kinds}, in lower case" if is_url(path.lower()) else f"these are: {kinds}"
        raise UsageError("no kind of URL that is read", place=[path.partition("?")[0]], hint=hint)
    return path


def local(path: str, *, written: bool = False) -> str:
    """A path of this machine. written: whether it is one to write. Raises UsageError for a URL, and leaves out what may
    be secret in it."""
    if not is_url(path):
        return path
    shown = re.sub("://[^/@]*@", "://", path.partition("?")[0])
    problem = "this must be a file on this machine, not a URL"
    hint = "name a path, and upload the file from there" if written else "download it, and name the copy"
    raise UsageError(problem, place=[shown], hint=hint)


def look_up(path: str) -> None:
    """List the files at a URL, for all that is asked of them next. Raises QuantcliError for one of a bucket or a
    repository that is not there, which names this URL, not that of a file below it."""
    if is_url(path):
        remote.files(path)


def is_folder(path: str) -> bool:
    """Whether there is a folder."""
    return bool(remote.files(path)) if is_url(path) else os.path.isdir(path)


def exists(path: str) -> bool:
    """Whether there is anything, or a link to nothing."""
    return is_file(path) or is_folder(path) if is_url(path) else os.path.lexists(path)


def is_file(path: str) -> bool:
    """Whether there is a regular file, as far as a server lets us know: many refuse what they do not have."""
    return remote.is_file(path) if is_url(path) else os.path.isfile(path)


def is_link(path: str) -> bool:
    """Whether it is a link, which no URL is."""
    return not is_url(path) and os.path.islink(path)


def leads_outside(folder: str, name: str) -> bool:
    """Whether a file of a folder is a link that leads out of that folder."""
    return not is_url(folder) and files.leads_outside(folder, name)


def real(path: str) -> str:
    """The path without links; a URL as it is."""
    return path if is_url(path) else os.path.realpath(path)


def size(path: str) -> int:
    """The bytes of a file; 0 where there is none."""
    if is_url(path):
        return max(remote.size(path) or 0, 0)
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def to_write(path: str) -> str:
    """The path beside which something is written that is made from this one: of a URL its name in the current folder.

    >>> to_write("models/a.safetensors"), to_write("hf://org/model@v1/b.safetensors"), to_write("hf://org/model@v1")
    ('models/a.safetensors', 'b.safetensors', 'model')
    """
    if not is_url(path):
        return path
    last = name(path.rstrip("/"))
    return last.partition("@")[0] if path.startswith("hf://") and path.rstrip("/").count("/") == 3 else last


def name(path: str) -> str:
    """The last step of a path; of a web address without what comes behind the name of the file."""
    if path.startswith(("http://", "https://")):
        from quantcli.stores.remote.addresses import name_of

        return name_of(path)
    return os.path.basename(path)


def names(folder: str) -> list[str]:
    """The names of files and folders in a folder. Raises DataError."""
    if is_url(folder):
        return list(dict.fromkeys(path.partition("/")[0] for path in remote.files(folder)))
    try:
        return os.listdir(folder)
    except OSError as error:
        raise DataError(error.strerror or str(error), place=[folder]) from None


def folders(folder: str) -> list[str]:
    """The names of folders in a folder."""
    if is_url(folder):
        return list(dict.fromkeys(path.partition("/")[0] for path in remote.files(folder) if "/" in path))
    with os.scandir(folder) as entries:
        return [e.name for e in entries if e.is_dir()]


def walk(folder: str, onerror: Callable[[OSError], None]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Folders from this one down: path, names of folders in it, which may be taken off the list, and of files."""
    if not is_url(folder):
        yield from os.walk(folder, onerror=onerror)
        return
    below, found = folders(folder), [path for path in remote.files(folder) if "/" not in path]
    yield folder, below, found
    for each in below:
        yield from walk(os.path.join(folder, each), onerror)


def relative(path: str, folder: str) -> str:
    """A path below a folder, relative to that."""
    return path[len(folder) :].strip("/") or "." if is_url(path) else os.path.relpath(path, folder)


def opened(path: str, *, hold: bool = True, follow: bool = True) -> InputFile:
    """A file to read; hold, follow: as InputFile has them. Raises QuantcliError."""
    if not is_url(path):
        file = InputFile(path, hold=hold, follow=follow)
        try:
            foreign.check_fetched(file)
        except QuantcliError:
            file.close()
            raise
        return file
    try:
        return remote.store(path).open(path)
    except remote.MissingError:
        raise remote.missing(path) from None


def unlisted(folder: str) -> list[str]:
    """What there is to say of a folder that cannot be listed."""
    if not folder.startswith(("http://", "https://")):
        return []
    return ["a web server does not list its folders: only files with the usual names of a model's were looked for"]


def each(function: Callable[[str], T], paths: Sequence[str]) -> Iterator[T]:
    """What a function that opens files makes of each path, in order; of URLs many at a time."""
    if not paths or not is_url(paths[0]):
        yield from map(function, paths)
        return
    yield from remote.at_once(function, paths, AT_ONCE)


def read_small(path: str, limit: int, *, follow: bool = True) -> bytes:
    """The bytes of a side file of at most `limit` bytes. follow: whether it may be a link."""
    if is_url(path):
        try:
            return remote.content(path, limit)
        except remote.MissingError:
            raise remote.missing(path) from None
    return files.content(InputFile(path, follow=follow), limit)
