"""Addresses of web servers: which are valid, where redirections may lead, and the names of files in them."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from quantcli.errors import QuantcliError, UsageError, printable

_PAGE = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)(?:/|/(?:tree|blob)/.*)?", re.IGNORECASE
)
"""Pages of models on the hub, as a browser shows their addresses."""


def check(url: str) -> None:
    """Raise UsageError for an address that is not valid, holds a password, or is a page of the hub."""
    try:
        parts = urlsplit(url)
        valid = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if "@" in parts.netloc if valid else "@" in url:
        place = f"{url.partition('://')[0]}://...@{url.rpartition('@')[2]}"
        raise UsageError("a URL with a password is not read", place=[place], hint="leave out what is before the @")
    if not valid:
        raise UsageError("not a valid URL", place=[url], hint="it has the form https://host/path")
    if page := _PAGE.fullmatch(url):
        hint = f"name the model as hf://{page[1]}"
        raise UsageError("this is a page of the hub, and not a file", place=[url], hint=hint)


def asked_for(netloc: str) -> str:
    """The name of a server as it is asked for: letters beyond ASCII are encoded. Raises QuantcliError.

    >>> asked_for("m\u00fcller.example:8000"), asked_for("[::1]:8000")
    ('xn--mller-kva.example:8000', '[::1]:8000')
    """
    try:
        return netloc.encode("idna").decode()
    except UnicodeError:
        raise QuantcliError(f"{printable(netloc, 100)} cannot be the name of a server") from None


def proxy(given: str, scheme: str) -> SplitResult:
    """The address of the proxy for a scheme, as its variable gives it. Raises UsageError."""
    try:
        found = urlsplit(given if "://" in given else f"http://{given}")
        valid = found.scheme == "http" and bool(found.hostname) and found.port != 0
        asked_for(found.netloc)
    except (ValueError, QuantcliError):
        valid = False
    if not valid:
        hint = "it has the form http://host:port; other kinds of proxies are not supported"
        raise UsageError("not the address of a proxy", place=[f"{scheme}_proxy"], hint=hint)
    return found


def led(url: str, location: str) -> str:
    """The address that a redirection leads to. Raises QuantcliError."""
    try:
        found = urljoin(url, location).partition("#")[0]
        scheme, netloc = urlsplit(found)[:2]
        valid = scheme in ("http", "https") and bool(netloc) and "@" not in netloc and urlsplit(found).port != 0
    except ValueError:
        valid = False
    if not valid:
        raise QuantcliError("the server leads to an address that is not valid")
    if scheme == "http" and url.startswith("https://"):
        raise QuantcliError("the server leads from https to http, where anybody on the way can change the file")
    return found


def name_of(url: str) -> str:
    """The name of a file in a URL, without what comes behind it; of a URL without a path that of the server.

    >>> name_of("https://host/a/model%20one.safetensors?download=true"), name_of("https://host:8000")
    ('model one.safetensors', 'host')
    """
    parts = urlsplit(url)
    return unquote(parts.path.rpartition("/")[2]) or ("" if parts.path.strip("/") else parts.hostname or "")
