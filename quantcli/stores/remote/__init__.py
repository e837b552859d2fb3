"""Files behind URLs: repositories of the Hugging Face hub, buckets and web servers, read a range at a time.

    hf://org/model[@revision][/file or folder]      needs huggingface_hub, the extra quantcli[hub]
    s3://bucket/key, gs://bucket/key, az://container/key      need obstore, the extra quantcli[cloud]
    https://host/path      needs nothing more

Nothing of this is imported before a URL is read. `store` finds the kind of place that a URL names; what is read of it
goes through `reading`.
"""

from __future__ import annotations

import importlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from quantcli.errors import QuantcliError, UsageError
from quantcli.stores.files import content as whole

if TYPE_CHECKING:
    from quantcli.stores.files import InputFile

SCHEMES = {"hf": "hub", "s3": "cloud", "gs": "cloud", "az": "cloud", "http": "http", "https": "http"}
"""The module for each scheme of a URL."""

T = TypeVar("T")

_FRESH = 60.0
"""Seconds for which a list of files is believed: opening a model asks for it many times. What is read afterwards is
checked file by file."""


FILE = re.compile(r"\.(?:safetensors|gguf|onnx|npy|npz|json|ya?ml|bin|pt|pth|ckpt|txt|md)$", re.IGNORECASE)
"""Endings of files: what is named so is no folder where nothing can be listed."""


class DeniedError(QuantcliError):
    """A server that gives no access. Buckets answer so for what they do not have, too."""


class MissingError(Exception):
    """There is no such file."""


class Store(Protocol):
    """Where the files of a URL are."""

    def pinned(self, url: str) -> str:
        """The URL of just the version that is read; the same URL where there is none."""

    def files(self, folder: str) -> Mapping[str, int | None]:
        """The files below a folder, also in subfolders: their bytes by path below the folder, None where they are not
        known yet; empty where it is no folder."""

    def open(self, url: str) -> InputFile:
        """A file. Raises MissingError, and QuantcliError."""


_SMALL, _SMALL_FILES = 1 << 24, 64
"""Bytes of all files, and number of files, whose content is kept as long: a configuration is read by many, and so is an
index, of 3 MB for 34,000 tensors."""

_meanwhile: list[Callable[[], None]] = []
_contents: dict[str, tuple[float, bytes]] = {}
_there: dict[str, tuple[float, bool]] = {}
_known: dict[tuple[str, str], tuple[float, Mapping[str, int | None]]] = {}
_lock = threading.Lock()


def scheme_of(path: str) -> str:
    """The scheme of a URL that is supported; empty for any other path."""
    scheme, separator, _ = path.partition("://")
    return scheme if separator and scheme in SCHEMES else ""


def meanwhile(call: Callable[[], None]) -> None:
    """Call something when a server is first asked for a list of files, to use the time until it answers. Before that
    other modules are imported, and two threads that import wait for each other at every file: that took a third more
    processor time."""
    _meanwhile.append(call)


def store(url: str) -> Store:
    """The store for a URL. Raises UsageError where it names nothing, or what reads it is not installed."""
    if not url.partition("://")[2].strip("/"):
        raise UsageError("it names nothing", place=[url], hint="see quantcli help urls")
    module = importlib.import_module(f"quantcli.stores.remote.{SCHEMES[scheme_of(url)]}")
    found: Store = module.STORE
    return found


def forget(path: str = "") -> None:
    """Believe no list of files and no content that was read before of a place where something was written, of what is
    in it, or of what it is in."""

    def concerns(url: str) -> bool:
        return url.startswith(path) or path.startswith(url)

    with _lock:
        for key in [key for key in _known if concerns(key[1])]:
            del _known[key]
        for kept in (_contents, _there):
            for url in [url for url in kept if concerns(url)]:
                del kept[url]


def files(folder: str) -> Mapping[str, int | None]:
    """The files below a folder, listed at most once a minute."""
    scheme, _, rest = folder.partition("://")
    folder = f"{scheme}://{rest.rstrip('/')}"
    key = scheme, folder
    with _lock:
        at, found = _known.get(key, (0.0, {}))
    if time.monotonic() - at < _FRESH and at:
        return found
    while _meanwhile:
        _meanwhile.pop()()
    below = _below(folder)
    listed = store(folder).files(folder) if below is None else below
    with _lock:
        _known[key] = time.monotonic(), listed
    return listed


def _below(folder: str) -> Mapping[str, int | None] | None:
    """The files below a folder by the list of one that it is in; None where none is known."""
    with _lock:
        for (scheme, parent), (at, found) in _known.items():
            whole = found and SCHEMES[scheme] != "http" and time.monotonic() - at < _FRESH
            if whole and folder.startswith(f"{parent}/"):
                start = f"{folder[len(parent) + 1 :]}/"
                return {path[len(start) :]: nbytes for path, nbytes in found.items() if path.startswith(start)}
    return None


def size(url: str) -> int | None:
    """The bytes of a file by a list that is known already; -1 where that does not have it, None where none is known.
    The lists of web servers are of usual names only."""
    with _lock:
        for (scheme, folder), (at, found) in _known.items():
            # A bucket tells that nothing is below a key; the hub and the web may tell nothing.
            whole = bool(found) or SCHEMES[scheme] == "cloud"
            if whole and url.startswith(f"{folder}/") and time.monotonic() - at < _FRESH:
                name = url[len(folder) + 1 :]
                if name in found:
                    return found[name] or 0
                if SCHEMES[scheme] != "http":
                    return -1
    return None


def is_file(url: str) -> bool:
    """Whether a server gives a file, by a list or else asked at most once a minute."""
    known = size(url)
    if known is not None:
        return known >= 0
    with _lock:
        at, found = _there.get(url, (0.0, False))
    if at and time.monotonic() - at < _FRESH:
        return found
    try:
        store(url).open(url).close()
        found = True
    except (MissingError, DeniedError):
        found = False
    with _lock:
        _there[url] = time.monotonic(), found
    return found


def content(url: str, limit: int) -> bytes:
    """What a small file holds, of at most `limit` bytes. Raises MissingError and QuantcliError."""
    with _lock:
        at, found = _contents.get(url, (0.0, b""))
    if at and time.monotonic() - at < _FRESH:
        return found
    found = whole(store(url).open(url), limit)
    with _lock:
        _contents[url] = time.monotonic(), found
        while len(_contents) > _SMALL_FILES or sum(len(kept) for _, kept in _contents.values()) > _SMALL:
            del _contents[next(iter(_contents))]
    return found


def at_once(function: Callable[[str], T], urls: Sequence[str], count: int) -> Iterator[T]:
    """What a function makes of each URL, in order, so many at a time. An error or an interruption waits for none of the
    others: a request may take a minute."""
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(min(count, len(urls)))
    try:
        yield from pool.map(function, urls)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def need(module: str, extra: str, url: str) -> Any:
    """An optional library. Raises UsageError that names the extra where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        hint = f"install it with: pip install 'quantcli[{extra}]'"
        raise UsageError(f"{scheme_of(url)}:// needs {module.partition('.')[0]}", place=[url], hint=hint) from None


def missing(url: str) -> QuantcliError:
    """The error for a URL at which nothing is."""
    return QuantcliError("no such file or folder", place=[url])
