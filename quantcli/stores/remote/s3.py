"""Objects of S3 to write: through botocore, which finds credentials, regions and endpoints as the tools of AWS do.

Files of weights are uploaded in parts (see upload). Reading goes through obstore (see cloud).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from typing import Any
from urllib.parse import urlsplit

from quantcli.errors import QuantcliError
from quantcli.stores import remote
from quantcli.stores.remote import keys, refusals
from quantcli.stores.remote.lock import ExistsError, Small

MOST_PARTS = 10_000
"""Parts that an object may have."""
FLIGHTS = 2
"""Parts of a file that are sent at a time."""
COPIED = 256 << 20
"""Bytes that S3 copies by itself in one request: more may take longer than an answer is waited for."""


AT_ONCE = 16
"""Requests at a time that do not wait for each other."""

_making = threading.Lock()
"""Held while a client is made: two threads that need the first one would make two."""

_NOT_LISTED = ("NotImplemented", "MethodNotAllowed", "NoSuchUpload", "InvalidRequest", "405", "501")
"""What servers answer that cannot list the uploads of a bucket."""

# ---- requests ---------------------------------------------------------------------------------------------------


def client(url: str) -> Any:
    """The client of botocore for what the environment says now. Raises UsageError where it is not installed."""
    remote.need("botocore", "cloud", url)
    refusals.check_endpoints()
    with _making:
        return _client(keys.known())


@lru_cache(maxsize=4)
def _client(known: tuple[tuple[str, str], ...]) -> Any:
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.handlers import add_expect_header

    told, session = dict(known), keys.session(known)
    unsigned = told.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true")
    settings: dict[str, Any] = {"signature_version": UNSIGNED} if unsigned else {}
    config = Config(
        connect_timeout=10,
        read_timeout=120,
        retries={"mode": "standard", "total_max_attempts": 7},
        max_pool_connections=AT_ONCE,
        # Servers of other makers do not know the newer checksums.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # A digest of every part took 0.35 s of the 2.3 for 1 GB. Over https the connection has one of its own, and over
        # http nobody vouches for what is read either; verify --source makes every code again.
        s3={"payload_signing_enabled": False},
        **settings,
    )
    endpoint = next((told[n] for n in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT") if told.get(n)), None)
    made = session.create_client("s3", region_name=keys.region(session), endpoint_url=endpoint, config=config)
    # A server that is asked first whether it would take the bytes answers once more, which takes as long as a part.
    made.meta.events.unregister("before-call.s3", add_expect_header)
    made.meta.events.register("before-call.s3.HeadBucket", _not_redirected)
    made.meta.events.register("needs-retry.s3", _signed_again)
    return made


def _signed_again(response: Any, attempts: int, **_: Any) -> int | None:
    """Have botocore repeat a request at once, for which it is signed again, where its keys had expired: they may have
    been renewed since."""
    code = response[1].get("Error", {}).get("Code") if response is not None else None
    return 0 if attempts == 1 and code in (*refusals.EXPIRED, "InvalidAccessKeyId") else None


def _not_redirected(params: dict[str, Any], **_: Any) -> None:
    """Have botocore not ask for the region of a bucket in order to ask for its region, which had no end where a server
    leads elsewhere and names no region."""
    params["context"]["s3_redirect"]["redirected"] = True


def ready(url: str) -> None:
    """Prepare the client while something else is waited for: to import botocore takes 0.2 s."""

    def prepared() -> None:
        with contextlib.suppress(Exception):  # whoever needs it is told
            client(url)

    threading.Thread(target=prepared, daemon=True).start()


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
        raise _problem(code, status, str(found.get("Message", "")), url, error.operation_name) from None
    except KeyError:  # botocore takes any page for an answer
        raise refusals.elsewhere(url) from None
    except exceptions.ParamValidationError as error:
        line = str(error).splitlines()[-1].partition(": Bucket name must")[0][:200]
        raise QuantcliError(f"not a valid name in a bucket: {line}", place=[url]) from None
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
        hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        raise QuantcliError("no credentials were found", place=[url], hint=hint) from None
    except (exceptions.BotoCoreError, OSError) as error:
        network = exceptions.HTTPClientError, exceptions.ConnectionError, exceptions.IncompleteReadError
        if isinstance(error, FileNotFoundError) or (
            isinstance(error, exceptions.BotoCoreError) and not isinstance(error, network)
        ):
            raise keys.unusable(error, url) from None
        asked = urlsplit(str(getattr(error, "kwargs", {}).get("endpoint_url") or ""))
        who = f"{asked.scheme}://{asked.netloc}" if asked.netloc else "the bucket"
        hint = "check the network and AWS_ENDPOINT_URL, or try again later"
        raise QuantcliError(f"{who} cannot be reached ({type(error).__name__})", place=[url], hint=hint) from None


def _problem(code: str, status: int, message: str, url: str, operation: str) -> QuantcliError:
    """The error for a request that was refused."""
    line = " ".join(message.split())[:200]
    if code == "NoSuchBucket":
        return QuantcliError("no such bucket", place=[url], hint="create it first")
    if (known := refusals.of_credentials(code, url)) is not None:
        return known
    if code in ("AccessDenied", "AllAccessDisabled", "401", "403", "Forbidden", "Unauthorized"):
        hint = "writing needs the rights to put, get, list and delete objects, and to list and abort multipart uploads"
        return QuantcliError(f"no access with these credentials ({operation}: {code})", place=[url], hint=hint)
    if 300 <= status < 400:
        return refusals.elsewhere(url)
    if code == "NoSuchUpload":
        return QuantcliError("the upload was ended by somebody else", place=[url], hint="run again")
    later = "try again later" if status >= 500 and status != 501 else None
    return QuantcliError(f"the bucket refuses: {code}{f', {line}' if line else ''}", place=[url], hint=later)


def put(url: str, content: bytes, *, create: bool = False, match: str | None = None) -> str:
    """Write a small object; its ETag. create: only where there is none; match: only in place of the one of this ETag.
    Raises ExistsError."""

    def once(**condition: str) -> str:
        with told(url):
            return str(client(url).put_object(**place(url), Body=content, **condition)["ETag"])

    if match is None:
        return once(IfNoneMatch="*") if create else once()
    try:
        return once(IfMatch=match)
    except ExistsError:  # Ceph 16 compares it without its quotation marks
        return once(IfMatch=match.strip('"'))


def get(url: str) -> Small | None:
    """A small object; None where there is none."""
    try:
        with told(url):
            found = client(url).get_object(**place(url))
            content, tag, written = found["Body"].read(), str(found["ETag"]), found["LastModified"]
    except QuantcliError as error:
        if "NoSuchKey" in error.problem or error.problem.startswith("the bucket refuses: 404"):
            return None
        raise
    now = parsedate_to_datetime(found["ResponseMetadata"]["HTTPHeaders"]["date"])
    return Small(content, tag, (now - written).total_seconds())


def listed(prefix: str) -> dict[str, int]:
    """Bytes of all objects whose URL begins so, by what comes behind that."""
    return {name: size for name, (size, _) in tagged(prefix).items()}


def tagged(prefix: str) -> dict[str, tuple[int, str]]:
    """Bytes and ETag of all objects whose URL begins so, by what comes behind that."""
    at, found = place(prefix), dict[str, tuple[int, str]]()
    with told(prefix):
        for page in client(prefix).get_paginator("list_objects_v2").paginate(Bucket=at["Bucket"], Prefix=at["Key"]):
            objects = page.get("Contents", ())
            found |= {o["Key"][len(at["Key"]) :]: (int(o["Size"]), str(o.get("ETag", ""))) for o in objects}
    return found


def any_of(url: str) -> bool:
    """Whether there is an object of this URL, or one below it."""
    at = place(url)

    def begins(prefix: str) -> bool:
        with told(url):
            found = client(url).list_objects_v2(Bucket=at["Bucket"], Prefix=prefix, MaxKeys=1).get("Contents", ())
        return any(o["Key"] == at["Key"] or o["Key"].startswith(f"{at['Key']}/") for o in found)

    return any(together(lambda: begins(at["Key"]), lambda: begins(f"{at['Key']}/")))


def together(*calls: Callable[[], Any]) -> list[Any]:
    """What calls return that do not wait for each other. All have ended before an error is raised."""
    with ThreadPoolExecutor(min(AT_ONCE, len(calls) or 1)) as pool:
        return [made.result() for made in [pool.submit(call) for call in calls]]


def delete(urls: Sequence[str]) -> None:
    """Delete objects, those that are not there too, in any order. One by one: servers of other makers do not know the
    request for many."""

    def deleted(url: str) -> None:
        with told(url):
            client(url).delete_object(**place(url))

    together(*(partial(deleted, url) for url in urls))


def abort_below(prefix: str) -> None:
    """End the uploads that were begun below a URL and never completed. On servers that do not list them they stay, and
    nobody sees them."""
    from botocore.exceptions import ClientError

    at, found = place(prefix), list[dict[str, str]]()
    with told(prefix):
        try:
            listed = client(prefix).get_paginator("list_multipart_uploads")
            for page in listed.paginate(Bucket=at["Bucket"], Prefix=at["Key"]):
                found += page.get("Uploads", ())
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") not in _NOT_LISTED:
                raise
        for upload in found:
            if upload["Key"].startswith(at["Key"]):
                own = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
                client(prefix).abort_multipart_upload(Bucket=at["Bucket"], **own)


def copy_part(url: str, upload: str, number: int, source: str, first: int, end: int, tag: str | None) -> str | None:
    """Have the bucket fill a part of an upload from a range of another object; the ETag of the part, None where the
    server cannot. tag: the ETag that the source must have. Raises ExistsError where it has another."""
    from botocore.exceptions import ClientError

    condition = {} if tag is None else {"CopySourceIfMatch": tag}
    asked = {**place(url), "UploadId": upload, "PartNumber": number, "CopySource": place(source), **condition}
    with told(url):
        try:
            made = client(url).upload_part_copy(**asked, CopySourceRange=f"bytes={first}-{end - 1}")
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in ("NotImplemented", "MethodNotAllowed", "501"):
                return None
            raise
    # rclone takes the request for an empty part, and says nothing of a copy.
    found = made.get("CopyPartResult", {}).get("ETag")
    return None if found is None else str(found)


def copy(source: str, target: str, size: int, *, create: bool = False) -> None:
    """Have the bucket copy an object, which moves no byte of it here. create: only where there is none yet, as far as
    the server and the installed botocore know that condition. Raises ExistsError."""
    requests, origin = client(target), place(source)

    def only_new(operation: str) -> dict[str, str]:
        known = requests.meta.service_model.operation_model(operation).input_shape.members
        return {"IfNoneMatch": "*"} if create and "IfNoneMatch" in known else {}

    with told(target):
        if size > COPIED and _copied_in_parts(source, target, size, only_new("CompleteMultipartUpload")):
            return
        requests.copy_object(**place(target), CopySource=origin, **only_new("CopyObject"))


def _copied_in_parts(source: str, target: str, size: int, condition: Mapping[str, str]) -> bool:
    """Have the bucket copy an object in parts, several at a time; False where the server cannot."""
    requests, step = client(target), max(COPIED, -(-size // MOST_PARTS))
    upload = requests.create_multipart_upload(**place(target))["UploadId"]
    own = {**place(target), "UploadId": upload}
    ends = [*range(step, size, step), size]
    try:
        tags = together(
            *(
                partial(copy_part, target, upload, number, source, (number - 1) * step, end, None)
                for number, end in enumerate(ends, 1)
            )
        )
        if None in tags:
            requests.abort_multipart_upload(**own)
            return False
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
        requests.complete_multipart_upload(**own, MultipartUpload={"Parts": parts}, **condition)
    except BaseException:
        with contextlib.suppress(Exception):
            requests.abort_multipart_upload(**own)
        raise
    return True
