"""What refusals of buckets mean, by the codes of S3, and the endpoints that are given for buckets."""

from __future__ import annotations

import os

from quantcli.errors import QuantcliError, UsageError, printable
from quantcli.stores.remote import addresses

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT", "GOOGLE_BASE_URL")
"""Variables that name a server of another maker."""

EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "InvalidToken", "TokenRefreshRequired")
UNKNOWN = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthorizationHeaderMalformed")


def of_credentials(code: str, url: str) -> QuantcliError | None:
    """The error for a code that tells what is wrong with the credentials; None for another one."""
    if code in EXPIRED:
        return expired(url)
    if code == "RequestTimeTooSkewed":
        return QuantcliError("the clock of this machine is wrong", place=[url], hint="set it and run again")
    if code in UNKNOWN:
        hint = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL"
        return QuantcliError(f"the bucket does not know these credentials ({code})", place=[url], hint=hint)
    return None


class ExpiredError(QuantcliError):
    """Credentials that were good once."""


def expired(url: str) -> ExpiredError:
    """The error for credentials that were good once."""
    return ExpiredError("the credentials have expired", place=[url], hint="renew them and run again")


def elsewhere(url: str) -> QuantcliError:
    """The error where what answers is not the server of this bucket."""
    hint = "check AWS_ENDPOINT_URL and AWS_REGION"
    return QuantcliError("no S3 server answers, or not that of this bucket", place=[url], hint=hint)


def check_endpoints() -> None:
    """Raise UsageError for a variable that is to name a server and does not."""
    for name in ENDPOINTS:
        given = os.environ.get(name)
        if given:
            try:
                addresses.check(given)
                valid = given.startswith(("http://", "https://"))
            except UsageError:
                valid = False
            if not valid:
                problem, hint = f"{printable(given, 200)} is not the address of a server", "use https://host"
                raise UsageError(problem, place=[name], hint=hint)
