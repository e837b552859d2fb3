"""Credentials for S3: found by botocore, as the tools of AWS find them, and renewed while a run goes on.

botocore renews by itself what a service hands out for a while: the roles of machines and containers, web identities,
profiles with a role, a process or a login. Keys that stand in a file it reads once; here they are read again when the
file was written. Keys in variables cannot change while a process runs.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import Any

from quantcli.errors import QuantcliError, printable
from quantcli.stores import remote

_SERVICES = ("s3", "sts", "sso", "sso-oidc", "signin")
"""Services that are asked: for objects, and for credentials."""
_OF_FILES = ("shared-credentials-file", "config-file")
"""Names that botocore has for keys that stand in a file."""
_READ = timedelta(minutes=5)
"""How long keys are said to be valid: so short that they are asked for again before every request."""


def known() -> tuple[tuple[str, str], ...]:
    """What the environment says of AWS now."""
    return tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_")))


@lru_cache(maxsize=4)
def session(environment: tuple[tuple[str, str], ...]) -> Any:
    """The session of botocore for an environment (see known), whose credentials are those of now."""
    made = _session()
    made.get_component("credential_provider").providers.insert(0, _Renewed())
    return made


def region(session: Any) -> str:
    """The region that the environment or the profile names."""
    return str(session.get_config_variable("region") or "us-east-1")


def for_obstore(url: str) -> dict[str, Any]:
    """Settings with which obstore asks botocore for credentials. Raises QuantcliError where there are none."""
    remote.need("botocore", "cloud", url)
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        made = session(known())
        found = made.get_credentials()
        named = region(made)
        if found is not None:
            found.get_frozen_credentials()
    except (BotoCoreError, ClientError, OSError) as error:
        raise unusable(error, url) from None
    if found is None:
        hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for public data"
        raise QuantcliError("no credentials were found", place=[url], hint=hint)

    def provider() -> dict[str, Any]:
        now = found.get_frozen_credentials()
        keys = {"access_key_id": now.access_key, "secret_access_key": now.secret_key, "token": now.token}
        return {**keys, "expires_at": datetime.now(timezone.utc) + timedelta(minutes=1)}

    return {"credential_provider": provider, "region": named}


def unusable(error: Exception, url: str) -> QuantcliError:
    """The error for settings or credentials of which botocore makes nothing."""
    problem = f"the settings for AWS cannot be used: {printable(' '.join(str(error).split()), 300)}"
    return QuantcliError(problem, place=[url], hint="check the AWS_* variables and ~/.aws")


# ---- keys in files ----------------------------------------------------------------------------------------------


class _Renewed:
    """The first provider of a session: the credentials of all others, those of files so that they are read again."""

    METHOD = CANONICAL_NAME = "quantcli"

    def load(self) -> Any:
        """Credentials of botocore; None where there are none."""
        from botocore.credentials import RefreshableCredentials

        files, found = _written(), _session().get_credentials()
        if found is None or found.method not in _OF_FILES:
            return found
        held = [files, found]

        def read_again() -> dict[str, Any]:
            files = _written()
            if files != held[0]:
                with contextlib.suppress(Exception):  # half written: the old keys serve until the next request
                    now = _session().get_credentials()
                    if now is not None:
                        held[:] = files, now
            now = held[1].get_frozen_credentials()
            valid = (datetime.now(timezone.utc) + _READ).isoformat()
            return {
                "access_key": now.access_key,
                "secret_key": now.secret_key,
                "token": now.token,
                "expiry_time": valid,
            }

        return RefreshableCredentials.create_from_metadata(read_again(), read_again, found.method)


def _written() -> list[tuple[int, int, int] | None]:
    """When the files with keys were written: number, time and size of each."""
    named = (("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), ("AWS_CONFIG_FILE", "~/.aws/config"))
    found: list[tuple[int, int, int] | None] = []
    for variable, usual in named:
        try:
            about = os.stat(os.path.expanduser(os.environ.get(variable) or usual))
            found.append((about.st_ino, about.st_mtime_ns, about.st_size))
        except OSError:
            found.append(None)
    return found


# ---- sessions ---------------------------------------------------------------------------------------------------


def _session() -> Any:
    """A session of botocore that reads no more of its data files than is needed here."""
    import botocore.session

    made = botocore.session.Session()
    if os.environ.get("AWS_REGION"):  # it knows AWS_DEFAULT_REGION alone, and services that hand out keys need one
        made.set_config_variable("region", os.environ["AWS_REGION"])
    loader = made.get_component("data_loader")
    # It looks through the folders of 400, a third of the time that a client takes.
    loader.list_available_services = lambda type_name: list(_SERVICES)
    loader.file_loader.load_file = _described
    return made


def _described(path: str) -> Any:
    """One of botocore's data files, by its path without an ending, but for what is never used: the manual, and the
    endpoints of 300 other services, which took 6 MiB. None where there is no such file."""
    for ending, opened in ((".json", open), (".json.gz", gzip.open)):
        with contextlib.suppress(FileNotFoundError), opened(path + ending, "rb") as file:
            return json.loads(file.read(), object_hook=_asked_for)
    return None


def _asked_for(found: dict[str, Any]) -> Mapping[str, Any]:
    if isinstance(found.get("documentation"), str):
        found["documentation"] = ""
    if "partition" in found and "services" in found:
        found["services"] = {name: of for name, of in found["services"].items() if name in _SERVICES}
    return found
