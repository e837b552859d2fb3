"""Objects of S3 to write: through botocore, which finds credentials, regions and endpoints as the tools of AWS do.

An object is uploaded in parts by number, each sent when its bytes are there, in whatever order they come: the header of
a file of weights is known last, and is in part 1. Reading goes through obstore (see cloud).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

from quantcli.errors import QuantcliError
from quantcli.stores import remote
from quantcli.stores.remote.lock import ExistsError, Small

LEAST, MOST_PARTS = 5 << 20, 10_000
"""Bytes that S3 wants in every part but the last, and the parts that an object may have."""
FLIGHTS = 2
"""Parts of a file on their way at a time: with the bytes that are being gathered about 30 MiB of memory."""
_ZEROS = bytes(1 << 16)
COPIED = 256 << 20
"""Bytes that S3 copies by itself in one request: more may take longer than an answer is waited for."""


# ---- requests ---------------------------------------------------------------------------------------------------


def client(url: str) -> Any:
    """The client of botocore for what the environment says now. Raises UsageError where it is not installed."""
    remote.need("botocore", "cloud", url)
    return _client(tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_"))))


@lru_cache(maxsize=4)
def _client(known: tuple[tuple[str, str], ...]) -> Any:
    import botocore.session
    from botocore import UNSIGNED
    from botocore.config import Config

    told = dict(known)
    session = botocore.session.Session()
    unsigned = told.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true")
    settings: dict[str, Any] = {"signature_version": UNSIGNED} if unsigned else {}
    config = Config(
        connect_timeout=10,
        read_timeout=120,
        retries={"mode": "standard", "total_max_attempts": 7},
        max_pool_connections=4 * FLIGHTS,
        # Servers of other makers do not know the newer checksums; the signature covers every byte.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        **settings,
    )
    region = told.get("AWS_REGION") or told.get("AWS_DEFAULT_REGION") or session.get_config_variable("region")
    endpoint = next((told[n] for n in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT") if told.get(n)), None)
    return session.create_client("s3", region_name=region or "us-east-1", endpoint_url=endpoint, config=config)


def place(url: str) -> dict[str, str]:
    """Bucket and key of a URL, as requests name them."""
    bucket, _, key = url.partition("://")[2].partition("/")
    return {"Bucket": bucket, "Key": key}


@contextlib.contextmanager
def told(url: str) -> Iterator[None]:
    """What goes wrong with requests as QuantcliError, or ExistsError where a condition does not hold."""
    from botocore import exceptions

    try:
        yield
    except exceptions.ClientError as error:
        found = error.response.get("Error", {})
        code, status = str(found.get("Code", "")), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in ("PreconditionFailed", "ConditionalRequestConflict") or status == 412:
            raise ExistsError(url) from None
        raise _problem(code, status, str(found.get("Message", "")), url) from None
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
        hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        raise QuantcliError("no credentials were found", place=[url], hint=hint) from None
    except (exceptions.BotoCoreError, OSError) as error:
        hint = "try again later; --resume continues a folder"
        raise QuantcliError(f"the bucket cannot be reached ({type(error).__name__})", place=[url], hint=hint) from None


def _problem(code: str, status: int, message: str, url: str) -> QuantcliError:
    """The error for a request that was refused."""
    if code == "NoSuchBucket":
        return QuantcliError("no such bucket", place=[url], hint="create it first")
    if code in ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "InvalidToken", "TokenRefreshRequired"):
        hint = "renew them and run again; quantize --resume continues a folder"
        return QuantcliError("the credentials have expired", place=[url], hint=hint)
    if status in (401, 403):
        hint = "writing needs the rights to put, get, list and delete objects"
        return QuantcliError(f"no access with these credentials ({code})", place=[url], hint=hint)
    if code == "NoSuchUpload":
        return QuantcliError("the upload was ended by somebody else", place=[url], hint="run again")
    line = " ".join(message.split())[:200]
    return QuantcliError(f"the bucket refuses: {code}{f', {line}' if line else ''}", place=[url])


def put(url: str, content: bytes, *, create: bool = False, match: str | None = None) -> str:
    """Write a small object; its ETag. create: only where there is none; match: only in place of the one of this ETag.
    Raises ExistsError."""
    condition = {"IfNoneMatch": "*"} if create else {} if match is None else {"IfMatch": match}
    with told(url):
        found = client(url).put_object(**place(url), Body=content, **condition)
    return str(found["ETag"])


def get(url: str) -> Small | None:
    """A small object; None where there is none."""
    try:
        with told(url):
            found = client(url).get_object(**place(url))
            content = found["Body"].read()
    except QuantcliError as error:
        if "NoSuchKey" in error.problem:
            return None
        raise
    now = parsedate_to_datetime(found["ResponseMetadata"]["HTTPHeaders"]["date"])
    return Small(content, str(found["ETag"]), (now - found["LastModified"]).total_seconds())


def listed(prefix: str) -> dict[str, int]:
    """Bytes of all objects whose URL begins so, by what comes behind that."""
    at, found = place(prefix), dict[str, int]()
    with told(prefix):
        for page in client(prefix).get_paginator("list_objects_v2").paginate(Bucket=at["Bucket"], Prefix=at["Key"]):
            found |= {o["Key"][len(at["Key"]) :]: int(o["Size"]) for o in page.get("Contents", ())}
    return found


def any_of(url: str) -> bool:
    """Whether there is an object of this URL, or one below it."""
    at = place(url)
    with told(url):
        for prefix in (at["Key"], f"{at['Key']}/"):
            found = client(url).list_objects_v2(Bucket=at["Bucket"], Prefix=prefix, MaxKeys=1).get("Contents", ())
            if any(o["Key"] == at["Key"] or o["Key"].startswith(f"{at['Key']}/") for o in found):
                return True
    return False


def delete(urls: Sequence[str]) -> None:
    """Delete objects, those that are not there too."""
    for url in urls:
        with told(url):
            client(url).delete_object(**place(url))


def abort_below(prefix: str) -> None:
    """End the uploads that were begun below a URL and never completed."""
    at = place(prefix)
    with told(prefix):
        for page in (
            client(prefix).get_paginator("list_multipart_uploads").paginate(Bucket=at["Bucket"], Prefix=at["Key"])
        ):
            for upload in page.get("Uploads", ()):
                if upload["Key"].startswith(at["Key"]):
                    client(prefix).abort_multipart_upload(
                        Bucket=at["Bucket"], Key=upload["Key"], UploadId=upload["UploadId"]
                    )


def copy(source: str, target: str, size: int) -> None:
    """Have the bucket copy an object, which moves no byte of it here."""
    requests, origin = client(target), place(source)
    with told(target):
        if size <= COPIED:
            requests.copy_object(**place(target), CopySource=origin)
            return
        upload = requests.create_multipart_upload(**place(target))["UploadId"]
        own = {**place(target), "UploadId": upload}
        step = max(COPIED, -(-size // MOST_PARTS))

        def part(number: int) -> dict[str, Any]:
            first = (number - 1) * step
            asked = f"bytes={first}-{min(first + step, size) - 1}"
            made = requests.upload_part_copy(**own, PartNumber=number, CopySource=origin, CopySourceRange=asked)
            return {"PartNumber": number, "ETag": made["CopyPartResult"]["ETag"]}

        try:
            with ThreadPoolExecutor(8) as pool:
                parts = list(pool.map(part, range(1, -(-size // step) + 1)))
            requests.complete_multipart_upload(**own, MultipartUpload={"Parts": parts})
        except BaseException:
            with contextlib.suppress(Exception):
                requests.abort_multipart_upload(**own)
            raise


# ---- uploads ----------------------------------------------------------------------------------------------------


class Upload:
    """An object whose bytes come in any order, from several threads. shown: its name in errors. Bytes that are never
    written are zero."""

    def __init__(self, url: str, size: int, shown: str) -> None:
        self._url, self._size, self._shown = url, size, shown
        self._part = max(LEAST, -(-size // MOST_PARTS))
        self._count = -(-size // self._part)
        self._lock, self._room = threading.Lock(), threading.Semaphore(FLIGHTS)
        self._open: dict[int, _Gathering] = {}
        self._spare: list[bytearray] = []
        self._sent: dict[int, Future[str]] = {}
        self._failed: BaseException | None = None
        self._client, self._upload, self._pool = client(url), "", None
        if self._count > 1:
            with told(shown):
                self._upload = self._client.create_multipart_upload(**place(url))["UploadId"]
            self._pool = ThreadPoolExecutor(FLIGHTS)

    _pool: ThreadPoolExecutor | None

    def _size_of(self, number: int) -> int:
        return min(self._part, self._size - number * self._part)

    def write(self, offset: int, data: memoryview | bytes | bytearray) -> None:
        """Take in bytes; waits while too many are on their way."""
        view = memoryview(data).cast("B")
        while len(view):
            if self._failed is not None:
                raise self._failed
            number, inside = divmod(offset, self._part)
            size = self._size_of(number)
            count = min(len(view), size - inside)
            with self._lock:
                assert number not in self._sent, "bytes are written once"
                if number not in self._open:
                    self._open[number] = _Gathering(self._zeros(size), size)
                gathering = self._open[number]
            gathering.buffer[inside : inside + count] = view[:count]
            with self._lock:
                gathering.left -= count
                full = gathering.left == 0 and self._pool is not None
                if full:
                    del self._open[number]
            if full:
                self._send(number, gathering.buffer)
            offset, view = offset + count, view[count:]

    def _zeros(self, size: int) -> bytearray:
        """A buffer of zeros, one that was used before where there is one: memory that is freed is not always given
        back."""
        if size < self._part or not self._spare:
            return bytearray(size)
        found = self._spare.pop()
        for start in range(0, size, len(_ZEROS)):
            found[start : start + len(_ZEROS)] = _ZEROS[: size - start]
        return found

    def _send(self, number: int, content: bytearray) -> None:
        assert self._pool is not None
        self._room.acquire()
        with self._lock:
            self._sent[number] = self._pool.submit(self._uploaded, number, content)

    def _uploaded(self, number: int, content: bytearray) -> str:
        """Upload a part; its ETag."""
        try:
            with told(self._shown):
                found = self._client.upload_part(
                    **place(self._url), UploadId=self._upload, PartNumber=number + 1, Body=content
                )
            with self._lock:
                self._spare += [content] if len(content) == self._part else []
            return str(found["ETag"])
        except BaseException as error:
            self._failed = self._failed or error
            raise
        finally:
            self._room.release()

    def finish(self) -> None:
        """Have the object appear, with all its bytes. Raises QuantcliError."""
        if self._pool is None:
            held = self._open.pop(0, None)
            put(self._url, bytes(held.buffer) if held is not None else bytes(self._size))
            return
        for number in range(self._count):
            if number not in self._sent:
                held = self._open.pop(number, None)
                self._send(number, held.buffer if held is not None else bytearray(self._size_of(number)))
        parts = [{"PartNumber": number + 1, "ETag": self._sent[number].result()} for number in range(self._count)]
        with told(self._shown):
            self._client.complete_multipart_upload(
                **place(self._url), UploadId=self._upload, MultipartUpload={"Parts": parts}
            )
        self._upload = ""
        self._pool.shutdown()

    def abort(self) -> None:
        """End it, where it is not finished; what was uploaded is removed by the bucket."""
        self._failed = self._failed or QuantcliError("the upload was cancelled", place=[self._shown])
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._upload:
            with contextlib.suppress(Exception):
                self._client.abort_multipart_upload(**place(self._url), UploadId=self._upload)
            self._upload = ""


@dataclass(slots=True)
class _Gathering:
    """A part that is not full yet, and how many of its bytes are missing."""

    buffer: bytearray
    left: int
