"""Files in buckets: s3://bucket/key, gs://bucket/key and az://container/key, through obstore.

Credentials, regions and endpoints are found by obstore in the environment, as the tools of each cloud do (AWS_*,
GOOGLE_*, AZURE_*); other credentials of AWS than variables by botocore (see keys).
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from quantcli.errors import DataError, QuantcliError, UsageError, printable
from quantcli.stores import remote
from quantcli.stores.remote import FILE, DeniedError, MissingError, keys, refusals
from quantcli.stores.remote.reading import FIRST, WHOLE_ONLY, PassingError, RemoteFile, changed, raise_if_busy, retried

MOST_FILES = 100_000
"""Files of a folder, beyond which it is no model but a bucket."""

_BLOCK = 1 << 18
"""Bytes of a stream at a time: all of a piece in one would be in memory twice."""

_VALID, _USED = timedelta(minutes=10), 60.0
"""How long a link is valid, and seconds for which it is used: to sign one takes a sixth of the time of a request. 1 GB
through links takes 0.3 s of processor time, and 1.0 s as streams of obstore, whose bytes are copied three times on
their way here."""


def split(url: str) -> tuple[str, str]:
    """The bucket of a URL with its scheme, and the key in it. Raises UsageError.

    >>> split("s3://bucket/a/model.safetensors")
    ('s3://bucket', 'a/model.safetensors')
    """
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise UsageError("it names no bucket", place=[url], hint=f"it has the form {scheme}://bucket/key")
    if "//" in f"/{key.rstrip('/')}":
        raise UsageError("two slashes in a row are not supported in buckets", place=[url], hint="leave one out")
    return f"{scheme}://{bucket}", key.rstrip("/")


def problem_of(error: Exception, url: str) -> Exception:
    """What a problem that obstore reports is for whoever asked: MissingError, PassingError or a QuantcliError."""
    kind, text = type(error).__name__, re.sub(r"\?[^\s\"')]+", "?...", str(error))  # signatures are secret
    if isinstance(error, FileNotFoundError) or kind == "NotFoundError":
        if "NoSuchBucket" in text or "ContainerNotFound" in text or "bucket does not exist" in text:
            return QuantcliError("no such bucket", place=[url])
        return MissingError(url)
    if "list request" in text and "404 Not Found" in text:
        return QuantcliError("no such bucket", place=[url])
    if "169.254.169.254" in text or "MissingCredentials" in text:  # where a machine of a cloud would ask for them
        return QuantcliError("no credentials were found", place=[url], hint=_credentials(url))
    code = re.search(r"<Code>(\w+)</Code>", text)
    if code is not None and (known := refusals.of_credentials(code[1], url)) is not None:
        return known
    if kind in ("PermissionDeniedError", "UnauthenticatedError") or re.search(r"\b40[13] (?:Forbidden|Unauth)", text):
        if re.search("Expired|TokenRefresh", text):  # clouds other than S3 say it in words of their own
            return refusals.expired(url)
        return DeniedError("no access with these credentials", place=[url], hint=_credentials(url))
    if "without LOCATION" in text or "following redirect" in text or "NotPartial" in text:
        return refusals.elsewhere(url)
    if "metadata" in text.lower():
        return QuantcliError("no credentials were found", place=[url], hint=_credentials(url))
    if kind == "PreconditionError":
        return changed(url)
    if re.search(r"\b416\b|InvalidRange", text):
        return changed(url)
    if re.search(r"\b4\d\d (?:Bad|Not|Method|Conflict|Moved)|\b301\b", text):
        return QuantcliError(f"the bucket refuses: {_refusal(text) or kind}", place=[url])
    if isinstance(error, (ValueError, TypeError)) or kind in (
        "InvalidPathError",
        "NotSupportedError",
        "NotImplementedError",
    ):
        return QuantcliError(f"not possible here: {text.splitlines()[0][:200] if text else kind}", place=[url])
    return PassingError(f"{url.partition('://')[0]}: {_reason(text)}")


def _refusal(text: str) -> str:
    """Status and message of an answer by the text of obstore's error, which has all of the answer in it."""
    found = re.search(r"\b([34]\d\d [A-Z][A-Za-z ]+)", text)
    said = re.search(r'"message":"([^"]*)"|<Message>([^<]*)<', text)
    line = ", ".join([found[1], *filter(None, said.groups() if said else ())]) if found else text
    return printable(" ".join(line.split()), 200)


_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for public data",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to a key file, or GOOGLE_SKIP_SIGNATURE=true for public data",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_SKIP_SIGNATURE=true for public data",
}
"""What to do where there is no access, by the scheme of a URL."""


def _credentials(url: str) -> str:
    return _CREDENTIALS[url.partition("://")[0]]


def _reason(text: str) -> str:
    """The last cause of a problem in one line."""
    for sign, said in (
        ("Connect", "the connection is refused"),
        ("dns error", "its name is not known"),
        ("TimedOut", "no answer in time"),
        ("timed out", "no answer in time"),
    ):
        if sign in text:
            return said
    found = re.search(r"\b(5\d\d [A-Z][a-zA-Z ]+|SlowDown)", text)
    return found[1] if found else "the connection ended early"


class _Object:
    """Ranges of one object. links: whether they are fetched by signed links, over connections of this process."""

    def __init__(self, store: Any, key: str, shown: str, *, links: bool) -> None:
        self._store, self._key, self._shown, self._links = store, key, shown, links
        self.size = -1
        self.version: str | None = None
        self._link, self._signed = "", -_USED

    def first(self) -> bytes:
        """Its first bytes, which tell its size too."""
        return retried(self._first, self._shown)

    def _first(self) -> bytes:
        import obstore

        try:
            found = obstore.get(self._store, self._key, options={"range": (0, FIRST)})
            self.size, self.version = found.meta["size"], found.meta["e_tag"]
            return bytes(found.bytes())
        except Exception as error:
            if "non-partial" in str(error):
                return self._first_linked()
            problem = problem_of(error, self._shown)
            if isinstance(problem, DataError) and self._is_empty():
                return b""
            raise problem from None

    def _first_linked(self) -> bytes:
        """Its first bytes from a server that calls a range a whole file, which obstore refuses: rclone does."""
        import obstore

        try:
            about = obstore.head(self._store, self._key)
        except Exception as error:
            raise problem_of(error, self._shown) from None
        self.size, self.version = about["size"], about["e_tag"]
        content = bytearray(min(FIRST, self.size))
        if not self._links or not self._linked(0, memoryview(content)):
            raise QuantcliError(WHOLE_ONLY, place=[self._shown], hint="download the file, and name the copy")
        return bytes(content)

    def _is_empty(self) -> bool:
        """Whether it has no bytes, and so no range."""
        import obstore

        try:
            self.size = obstore.head(self._store, self._key)["size"]
        except Exception as error:
            raise problem_of(error, self._shown) from None
        return self.size == 0

    def fetch(self, start: int, into: memoryview) -> None:
        """Fill a buffer from byte `start`, of the version that was opened."""
        if self._links:
            if self._linked(start, into):
                return
            self._streamed(start, into)
            self._links = False  # refused to a link alone
        else:
            self._streamed(start, into)

    def _linked(self, start: int, into: memoryview) -> bool:
        """Fill a buffer from the answer to a signed link; False where that is not the range of this version."""
        import obstore

        from quantcli.stores.remote.http import asked, filled

        end = start + len(into)
        try:
            fresh = time.monotonic() - self._signed >= _USED
            if fresh:
                self._link, self._signed = obstore.sign(self._store, "GET", self._key, _VALID), time.monotonic()
            with asked(self._link, {"Range": f"bytes={start}-{end - 1}"}) as answer:
                raise_if_busy(answer)
                told = answer.headers.get("ETag"), answer.headers.get("Content-Range")
                if answer.status not in (200, 206) or told != (self.version, f"bytes {start}-{end - 1}/{self.size}"):
                    self._signed = -_USED
                    return False if fresh else self._linked(start, into)
                filled(answer, into)
                return True
        except PassingError:
            raise
        except Exception:
            return False

    def _streamed(self, start: int, into: memoryview) -> None:
        """Fill a buffer through obstore, which knows what the refusals of every cloud mean."""
        import obstore

        options: dict[str, Any] = {"range": (start, start + len(into))}
        if self.version is not None:
            options["if_match"] = self.version
        done = 0
        try:
            found = obstore.get(self._store, self._key, options=options)  # type: ignore[arg-type]
            if found.meta["size"] != self.size or found.meta["e_tag"] != self.version:
                raise changed(self._shown)
            if tuple(found.range) != (start, start + len(into)):
                raise DataError("the server sent another range than it was asked for", place=[self._shown])
            for block in found.stream(min_chunk_size=_BLOCK):
                into[done : done + len(block)] = block
                done += len(block)
        except QuantcliError:
            raise
        except Exception as error:
            raise problem_of(error, self._shown) from None
        if done != len(into):
            raise PassingError("the answer is shorter than it says")


class _Cloud:
    """Buckets as a store."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stores: dict[tuple[str, ...], Any] = {}

    def pinned(self, url: str) -> str:
        """The same: what is read is checked by its ETag."""
        return url

    def bucket(self, url: str) -> tuple[Any, str]:
        """The store of obstore for the bucket of a URL, and the key in it."""
        remote.need("obstore", "cloud", url)
        bucket, key = split(url)
        known = bucket, *(f"{n}={v}" for n, v in os.environ.items() if n.startswith(("AWS_", "GOOGLE_", "AZURE_")))
        with self._lock:
            if known not in self._stores:
                self._stores[known] = _opened(bucket, url)
            return self._stores[known], key

    def files(self, folder: str) -> Mapping[str, int | None]:
        """The objects below a key."""
        store, key = self.bucket(folder)
        import obstore

        within = f"{key}/" if key else ""

        def listed() -> dict[str, int | None]:
            found = dict[str, int | None]()
            try:
                for block in obstore.list(store, prefix=within or None, chunk_size=1000):
                    found |= {m["path"][len(within) :]: m["size"] for m in block}
                    if len(found) > MOST_FILES:
                        hint = "name the folder of a model"
                        raise QuantcliError(f"more than {MOST_FILES} files", place=[folder], hint=hint)
            except QuantcliError:
                raise
            except Exception as error:
                problem = problem_of(error, folder)
                if isinstance(problem, DeniedError) and FILE.search(key):  # a file may be read where none are listed
                    return {}
                raise problem from None
            return {path: size for path, size in found.items() if path and not path.endswith("/")}

        return retried(listed, folder)

    def open(self, url: str) -> RemoteFile:
        """An object."""
        store, key = self.bucket(url)
        if not key:
            raise MissingError(url)
        # To sign a link for other clouds may take requests, and what everybody may read needs none.
        unsigned = os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true")
        ranges = _Object(store, key, url, links=url.startswith("s3://") and not unsigned)
        return RemoteFile(url, ranges, ranges.first())


def _opened(bucket: str, url: str) -> Any:
    """The store for a bucket. Raises UsageError where what the environment says of it makes no sense."""
    refusals.check_endpoints()
    from obstore.store import from_url

    options: dict[str, Any] = {"timeout": timedelta(seconds=60), "connect_timeout": timedelta(seconds=10)}
    if any(os.environ.get(name, "").startswith("http://") for name in refusals.ENDPOINTS):
        options["allow_http"] = True
    # What obstore tries again itself is a request; here pieces are.
    retry: dict[str, Any] = {"max_retries": 1, "retry_timeout": timedelta(seconds=30)}
    settings: dict[str, Any] = {"client_options": options, "retry_config": retry}
    if bucket.startswith("s3://") and not {"AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE"} & set(os.environ):
        settings |= keys.for_obstore(url)
    try:
        return from_url(bucket, **settings)
    except Exception as error:
        problem = re.sub(r"^Generic \w+ error: ", "", str(error).splitlines()[0])[:200]
        if "Account must be specified" in problem:
            raise UsageError("no storage account is named", place=[url], hint=_credentials(url)) from None
        raise UsageError(problem, place=[url]) from None


STORE = _Cloud()
