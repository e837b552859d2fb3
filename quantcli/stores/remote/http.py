"""Files of web servers: ranges over connections that are kept open, with the standard library alone.

A web server does not list folders. A folder is therefore looked through by the names that models have, and the shards
that its index names; whoever reads it is told so.

What stands behind the question mark of a URL may be a signature that opens the file to everybody. `_Web.pinned` puts
eight digits in its place, and from there on nothing knows it but the request.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit
from weakref import WeakKeyDictionary

from quantcli.errors import DataError, QuantcliError, printable
from quantcli.stores.remote import FILE, DeniedError, MissingError, addresses, at_once, content
from quantcli.stores.remote.reading import FIRST, WHOLE_ONLY, PassingError, RemoteFile, changed, raise_if_busy, retried

TIMEOUT = 30.0
"""Seconds to wait for an answer, or for more of it."""

_SMALL = 1 << 24
"""Bytes up to which a file is taken whole where a server knows no ranges: configurations and indexes."""

_NAMES = (
    "model.safetensors.index.json", "model.safetensors", "config.json", "generation_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "tokenizer.model", "chat_template.jinja", "preprocessor_config.json", "processor_config.json",
    "quantize_config.json", "diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors",
    "adapter_config.json", "adapter_model.safetensors", "README.md", "LICENSE",
)  # fmt: skip
"""Files of a model that are asked for in a folder."""

_INDEX = 100_000_000
"""Most bytes of an index, which is read at once, for everybody reads it next."""

_QUERY = re.compile(r"\?([0-9a-f]{8})")


# ---- connections ------------------------------------------------------------------------------------------------


class _Proxy(NamedTuple):
    """What a connection leads through. login: headers that tell it who asks, where it wants the whole address."""

    name: str
    login: dict[str, str] | None


class _Connections:
    """Connections that are kept open, by what they lead to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, str], list[http.client.HTTPConnection]] = {}
        self._context: ssl.SSLContext | None = None
        self.proxies = WeakKeyDictionary[http.client.HTTPConnection, _Proxy]()

    def take(self, scheme: str, netloc: str) -> tuple[http.client.HTTPConnection, bool]:
        """A connection, and whether it was used before. Raises QuantcliError for an address that is not valid."""
        with self._lock:
            if idle := self._idle.get((scheme, netloc)):
                return idle.pop(), True
        return self._opened(scheme, netloc), False

    def give(self, scheme: str, netloc: str, connection: http.client.HTTPConnection) -> None:
        """Keep a connection for the next request."""
        with self._lock:
            self._idle.setdefault((scheme, netloc), []).append(connection)

    def _opened(self, scheme: str, netloc: str) -> http.client.HTTPConnection:
        from urllib.request import getproxies, proxy_bypass

        proxy = None if proxy_bypass(netloc) else getproxies().get(scheme)
        address = addresses.proxy(proxy, scheme) if proxy else None
        through = address.netloc.rpartition("@")[2] if address else netloc
        made: http.client.HTTPConnection
        if scheme == "http":
            made = http.client.HTTPConnection(through, timeout=TIMEOUT)
        else:
            if self._context is None:
                self._context = ssl.create_default_context()
            made = http.client.HTTPSConnection(through, timeout=TIMEOUT, context=self._context)
        if address is not None:
            login = _login(address.username, address.password)
            if scheme == "https":
                made.set_tunnel(netloc, headers=login)
            self.proxies[made] = _Proxy(through, login if scheme == "http" else None)
        return made


def _login(user: str | None, password: str | None) -> dict[str, str]:
    """The header for a proxy with a user and a password."""
    if not user:
        return {}
    secret = f"{unquote(user)}:{unquote(password or '')}".encode()
    return {"Proxy-Authorization": f"Basic {base64.b64encode(secret).decode()}"}


_CONNECTIONS = _Connections()


@lru_cache(maxsize=64)
def _parted(url: str) -> tuple[str, str, str]:
    """The scheme of a URL, the server that it names, and what it is asked for."""
    scheme, _, path, query, _ = urlsplit(quote(url, safe="%/:=&?~+!$,;'@()*[]"))
    return scheme, addresses.asked_for(urlsplit(url).netloc), (path or "/") + (f"?{query}" if query else "")


@contextlib.contextmanager
def asked(url: str, headers: Mapping[str, str]) -> Iterator[http.client.HTTPResponse]:
    """The answer to a request. Raises PassingError where there is none."""
    scheme, netloc, target = _parted(url)
    connection, used = _CONNECTIONS.take(scheme, netloc)
    proxy = _CONNECTIONS.proxies.get(connection)
    headers = {"Host": netloc, "Accept-Encoding": "identity", **headers}
    try:
        if proxy is not None and proxy.login is not None:
            target, headers = f"{scheme}://{netloc}{target}", headers | proxy.login
        try:
            connection.request("GET", target, headers=headers)
            answer = connection.getresponse()
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            if not used:
                raise
            connection.close()  # it was closed while it was idle
            connection.request("GET", target, headers=headers)
            answer = connection.getresponse()
        try:
            yield answer
        except (PassingError, MissingError, QuantcliError):
            _put_back(scheme, netloc, connection, answer)
            raise
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        raise _unanswered(error, f"the proxy {proxy.name}" if proxy else netloc, netloc) from None
    except BaseException:
        connection.close()
        raise
    _put_back(scheme, netloc, connection, answer)


def _unanswered(error: OSError | http.client.HTTPException, who: str, netloc: str) -> Exception:
    """What it means that there is no answer. who: what was asked, which may be a proxy; netloc: the server."""
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = "SSL_CERT_FILE names a file of the certificates that are trusted"
        return QuantcliError(f"the certificate of {netloc} is not valid: {error.verify_message}", hint=hint)
    if isinstance(error, ssl.SSLError) and error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
        return QuantcliError(f"{netloc} does not speak https", hint="is its address one of http://?")
    if isinstance(error, ssl.SSLError):
        return PassingError(f"{netloc} ended the connection before it was encrypted, as servers without https do")
    if isinstance(error, socket.gaierror):
        return PassingError(f"the name {who} is not known" if who == netloc else f"the name of {who} is not known")
    if isinstance(error, TimeoutError):
        return PassingError(f"no answer from {who} within {TIMEOUT:g} s")
    refused = str(error) if str(error).startswith("Tunnel") else ""  # by a proxy
    if "407" in refused:
        hint = "set https_proxy to http://user:password@host:port"
        return QuantcliError(f"{who} asks for a user and a password, or does not know them", hint=hint)
    what = getattr(error, "strerror", None) or refused or "the connection ended early"
    return PassingError(f"{who}: {what[:1].lower() + what[1:]}")


def filled(answer: http.client.HTTPResponse, into: memoryview) -> None:
    """Fill a buffer with an answer. Raises PassingError where that ends early."""
    done = 0
    while done < len(into):
        got = answer.readinto(into[done:])
        if not got:
            raise PassingError("the connection ended early")
        done += got
    answer.read()


def _put_back(
    scheme: str, netloc: str, connection: http.client.HTTPConnection, answer: http.client.HTTPResponse
) -> None:
    """Keep a connection whose answer was read to its end."""
    if answer.isclosed() and not answer.will_close:
        _CONNECTIONS.give(scheme, netloc, connection)
    else:
        connection.close()


@contextlib.contextmanager
def _placed(place: str) -> Iterator[None]:
    """Name the file in an error that has no place yet."""
    try:
        yield
    except QuantcliError as error:
        if not error.place:
            error.within(place)
        raise


# ---- one file ---------------------------------------------------------------------------------------------------


class Ranges:
    """Ranges of the file at a URL, wherever that leads. shown: its name in errors; login: the headers, as they are now,
    that tell its own server who asks, None where it is told nothing; size: where it is known already."""

    def __init__(self, url: str, shown: str, login: Callable[[], Mapping[str, str]] | None, size: int = -1) -> None:
        self.url, self.shown, self.size = url, shown, size
        self._login = login
        self._headers = self._latest()
        self._leads_to = url
        self.version: str | None = None
        self._whole: bytes | None = None

    def first(self) -> bytes:
        """The first bytes of the file, which tell its size too."""
        return retried(self._first, self.shown)

    def _first(self) -> bytes:
        wanted = FIRST if self.size < 0 else min(FIRST, self.size)
        with self._answer(0, wanted) as answer:
            if answer.status == 416:  # an empty file has no first byte
                answer.read()
                self.size = 0
                return b""
            found = self._all(answer) if answer.status == 200 else answer.read(wanted)
            kind = answer.headers.get("Content-Type", "").lower()
        if len(found) < min(wanted, self.size):
            raise PassingError("the answer is shorter than it says")
        if kind.startswith("text/html") and found.lstrip().lower().startswith((b"<!doctype html", b"<html")):
            hint = "a login may be needed; name the address from which the file itself is downloaded"
            raise DeniedError("the server sends a web page instead of the file", place=[self.shown], hint=hint)
        return found

    def _all(self, answer: http.client.HTTPResponse) -> bytes:
        """The content of a small file whose server knows no ranges."""
        told = answer.length
        content = b"" if max(told or 0, self.size) > _SMALL else answer.read(_SMALL + 1 if told is None else told)
        if max(told or 0, self.size, len(content)) > _SMALL:
            raise QuantcliError(WHOLE_ONLY, place=[self.shown], hint="download the file, and name the copy")
        if len(content) < (told or 0):
            raise PassingError("the connection ended early")
        if self.size not in (-1, len(content)):
            raise DataError(f"it has {len(content)} bytes, and {self.size} by its list", place=[self.shown])
        self._whole, self.size = content, len(content)
        return content

    def fetch(self, start: int, into: memoryview) -> None:
        """Fill a buffer from byte `start`."""
        if self._whole is not None:
            into[:] = self._whole[start : start + len(into)]
            return
        with self._answer(start, len(into)) as answer:
            if answer.status == 200:
                into[:] = self._all(answer)[start : start + len(into)]
                return
            filled(answer, into)

    @contextlib.contextmanager
    def _answer(self, start: int, size: int) -> Iterator[http.client.HTTPResponse]:
        """The answer to a request for a range, of the same version as all before, wherever redirections lead."""
        own, url = urlsplit(self.url)[:2], self._leads_to
        for _ in range(8):
            headers = {"Range": f"bytes={start}-{start + size - 1}", "User-Agent": "quantcli"}
            if urlsplit(url)[:2] == own:  # a token is for nobody else, and never unencrypted
                headers |= self._headers
            with _placed(self.shown), asked(url, headers) as answer:
                if answer.status in (301, 302, 303, 307, 308):
                    answer.read()
                    url = self._leads_to = addresses.led(url, answer.headers.get("Location", ""))
                    continue
                expired = url != self.url and self.version is not None  # a link that was signed for us
                if answer.status in (401, 403) and expired:
                    answer.read()
                    self._leads_to = self.url
                    raise PassingError(f"{answer.status} {answer.reason}")
                if answer.status in (401, 403) and self._renewed():
                    answer.read()
                    raise PassingError(f"{answer.status} {answer.reason}")
                self._check(answer, start, size)
                yield answer
                return
        raise QuantcliError("it leads from one address to the next without end", place=[self.shown])

    def _latest(self) -> dict[str, str]:
        """The headers that log in now."""
        return {} if self._login is None else dict(self._login())

    def _renewed(self) -> bool:
        """Whether there is another token than the one that was sent: it is sent from now on."""
        before, self._headers = self._headers, self._latest()
        return self._headers != before

    def _check(self, answer: http.client.HTTPResponse, start: int, size: int) -> None:
        """Raise for an answer that is not the range of the file that was asked for."""
        status = answer.status
        raise_if_busy(answer)
        if status in (404, 410):
            answer.read()
            raise MissingError(self.shown)
        if status in (401, 403):
            answer.read()
            if status == 401 and "Authorization" in self._headers and self.version is not None:
                hint = "log in again with hf auth login, or set HF_TOKEN"
                raise QuantcliError("the token has expired or was withdrawn", place=[self.shown], hint=hint)
            what, hint = "no access", ""
            if status == 401 and self._login is None:
                what, hint = "a login is needed", "web servers are sent none: download the file, and name the copy"
            elif status == 401 and "Authorization" not in self._headers:
                what = "a token is needed"
            raise DeniedError(f"{what} ({status} {answer.reason})", place=[self.shown], hint=hint or None)
        if status == 416 and self.size < 0:
            return
        if status == 412 or status == 416:
            raise changed(self.shown)
        if status not in (200, 206):
            raise QuantcliError(f"the server answered {status} {answer.reason}", place=[self.shown])
        if (coding := answer.headers.get("Content-Encoding", "identity").lower()) != "identity":
            problem = f"the server sends it compressed ({printable(coding, 40)})"
            hint = "download the file, and name the copy"
            raise QuantcliError(problem, place=[self.shown], hint=hint)
        told = None
        if status == 206:
            told = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.headers.get("Content-Range", ""))
            if told is None:
                raise PassingError("the answer does not say which range it is")
            if int(told[1]) != start or int(told[2]) >= start + size:
                raise DataError("the server sent another range than it was asked for", place=[self.shown])
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        if self.version is not None and version != self.version:
            raise changed(self.shown)
        if told is not None:
            if self.size >= 0 and int(told[3]) != self.size:
                raise DataError(f"its size was {self.size} bytes, and is {told[3]} now", place=[self.shown])
            self.size = int(told[3])
        self.version = version


# ---- folders ----------------------------------------------------------------------------------------------------


class _Web:
    """Web servers as a store."""

    def __init__(self) -> None:
        self._queries: dict[str, str] = {}

    def pinned(self, url: str) -> str:
        """The URL without its secrets; the web has no versions. Raises UsageError for one that is not valid."""
        clean, _, query = url.partition("#")[0].partition("?")
        addresses.check(clean)
        if not query or (_QUERY.fullmatch(f"?{query}") and query in self._queries):
            return clean + (f"?{query}" if query else "")
        digits = hashlib.sha256(query.encode()).hexdigest()[:8]
        self._queries[digits] = query
        return f"{clean}?{digits}"

    def files(self, folder: str) -> Mapping[str, int | None]:
        """The files of a folder that have the names of a model's, or are in its index."""
        if FILE.search(urlsplit(folder).path) or "?" in folder:
            return {}
        sizes = dict(zip(_NAMES, at_once(self._size, [f"{folder}/{name}" for name in _NAMES], 8)))
        found: dict[str, int | None] = {name: size for name, size in sizes.items() if size is not None}
        for index in [name for name in found if name.endswith(".index.json")]:
            with contextlib.suppress(ValueError, AttributeError):
                listed = json.loads(content(f"{folder}/{index}", _INDEX)).get("weight_map") or {}
                found |= {name: None for name in listed.values() if isinstance(name, str) and name not in found}
        return found

    def _size(self, url: str) -> int | None:
        try:
            return len(content(url, _INDEX)) if url.endswith(".index.json") else self.open(url).size
        except (MissingError, DeniedError):
            return None

    def open(self, url: str) -> RemoteFile:
        """A file."""
        clean, mark, digits = url.partition("?")
        below = FILE.search(clean.partition("://")[2].partition("/")[2].rpartition("/")[0])
        if below or (mark and digits not in self._queries):  # nothing is below a file
            raise MissingError(url)
        ranges = Ranges(f"{clean}?{self._queries[digits]}" if mark else url, url, None)
        return RemoteFile(url, ranges, ranges.first())


STORE = _Web()
