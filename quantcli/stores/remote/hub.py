"""Files of models on the Hugging Face hub: hf://org/model[@revision][/file or folder].

huggingface_hub finds the token and the endpoint, the commit of a revision and the files of that commit. Their content
is read from where the hub sends us, a range at a time.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from json import JSONDecodeError
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote

from quantcli.errors import QuantcliError, UsageError, printable
from quantcli.stores import remote
from quantcli.stores.remote import MissingError
from quantcli.stores.remote.http import Ranges
from quantcli.stores.remote.reading import PassingError, RemoteFile, retried

_FORM = "hf://org/model[@revision][/file]"
_URL = re.compile(r"hf://([\w.-]+/[\w.-]+?)(?:@(refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(.*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")

T = TypeVar("T")


class Named(NamedTuple):
    """What a URL of the hub names. revision: a branch, a tag or a commit, empty for the main branch."""

    repo: str
    revision: str
    path: str


def parsed(url: str) -> Named:
    """What a URL names. Raises UsageError.

    >>> parsed("hf://org/model@v1.0/sub/model.safetensors")
    Named(repo='org/model', revision='v1.0', path='sub/model.safetensors')
    >>> parsed("hf://org/model@refs/pr/3")
    Named(repo='org/model', revision='refs/pr/3', path='')
    """
    match = _URL.fullmatch(url)
    if url.startswith(("hf://datasets/", "hf://spaces/")):
        raise UsageError("only repositories of models are read and written", place=[url], hint=f"these are {_FORM}")
    if match is None:
        raise UsageError("not the URL of a model on the hub", place=[url], hint=f"it has the form {_FORM}")
    return Named(match[1], unquote(match[2] or ""), (match[3] or "").strip("/"))


def is_commit(revision: str) -> bool:
    """Whether a revision is a commit, which does not change."""
    return _COMMIT.fullmatch(revision) is not None


def library(url: str) -> Any:
    """huggingface_hub. Raises UsageError where it is not installed."""
    found = remote.need("huggingface_hub", "hub", url)
    remote.need("huggingface_hub.constants", "hub", url)  # it is no attribute before somebody has imported it
    return found


def problem_of(error: Exception, url: str) -> Exception:
    """What a problem that huggingface_hub reports is for whoever asked: PassingError or a QuantcliError; any other
    error as it is."""
    errors, endpoint = library(url).errors, library(url).constants.ENDPOINT
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if isinstance(error, errors.GatedRepoError):
        hint = "accept its conditions on its page, and log in with: hf auth login"
        return QuantcliError("access to this repository is gated", place=[url], hint=hint)
    if isinstance(error, errors.RepositoryNotFoundError):
        hint = "check the name; of a private one, set HF_TOKEN or log in with: hf auth login"
        return QuantcliError("no such repository, or no access to it", place=[url], hint=hint)
    if isinstance(error, errors.RevisionNotFoundError):
        hint = "name a branch, a tag or a commit of it"
        if parsed(url).path:
            hint += "; a slash in its name is written %2F"
        return QuantcliError("no such revision in this repository", place=[url], hint=hint)
    if isinstance(error, errors.LocalTokenNotFoundError):
        hint = "set HF_TOKEN, or log in with: hf auth login"
        return QuantcliError("a token is needed", place=[url], hint=hint)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return QuantcliError("HF_HUB_OFFLINE forbids asking the hub", place=[url], hint="unset it")
    if isinstance(error, errors.HFValidationError):
        return UsageError(str(error), place=[url])
    if status in (429, 500, 502, 503, 504):
        return PassingError(f"the hub answers {status}")
    if status in (401, 403):
        hint = "its token may lack the right, or have expired; log in with: hf auth login"
        return QuantcliError(f"no access ({status})", place=[url], hint=hint)
    if isinstance(error, errors.HfHubHTTPError):
        said = printable(getattr(error, "server_message", None) or "", 200)
        return QuantcliError(f"the hub answers {status or error}" + (f": {said}" if said else ""), place=[url])
    kind, module = type(error).__name__, type(error).__module__.partition(".")[0]
    if kind in ("UnsupportedProtocol", "InvalidURL", "MissingSchema", "InvalidSchema"):
        return UsageError(
            f"HF_ENDPOINT is no address: {printable(endpoint, 200)}", place=[url], hint="use https://host"
        )
    if isinstance(error, UnicodeEncodeError):
        return UsageError("HF_TOKEN has characters that no token has", place=[url], hint="copy it once more")
    if isinstance(error, JSONDecodeError):
        hint = "a page to log in may be in the way; check HF_ENDPOINT and the network"
        return QuantcliError(f"{endpoint} does not answer as a hub", place=[url], hint=hint)
    if isinstance(error, OSError) or module in ("httpx", "httpx2", "requests"):
        return PassingError(f"{endpoint} cannot be reached ({kind})")
    return error


def called(call: Callable[[], T], url: str) -> T:
    """What a call of huggingface_hub returns, made again for as long as its problem may pass. Raises QuantcliError."""
    library(url)

    def attempt() -> T:
        try:
            return call()
        except QuantcliError:
            raise
        except Exception as error:
            raise problem_of(error, url) from None

    return retried(attempt, url)


class _Hub:
    """The hub as a store."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._trees: dict[tuple[str, ...], Mapping[str, int]] = {}

    def pinned(self, url: str) -> str:
        """The URL with the commit that its revision is now, and the name that the repository has now."""
        named = parsed(url)
        if is_commit(named.revision):
            return url
        api = library(url).HfApi()
        info = called(lambda: api.model_info(named.repo, revision=named.revision or None), url)
        return f"hf://{info.id}@{info.sha}" + (f"/{named.path}" if named.path else "")

    def _tree(self, url: str) -> tuple[Named, Mapping[str, int]]:
        """The commit a URL names, and the files of that: bytes by path."""
        named = parsed(self.pinned(url))
        key = library(url).constants.ENDPOINT, named.repo, named.revision
        with self._lock:
            if key not in self._trees:
                api = library(url).HfApi()

                def listed() -> dict[str, int]:
                    entries = api.list_repo_tree(named.repo, recursive=True, revision=named.revision)
                    return {e.path: e.size for e in entries if hasattr(e, "size")}

                self._trees[key] = called(listed, url)
            return named, self._trees[key]

    def files(self, folder: str) -> Mapping[str, int | None]:
        """The files of a repository below a folder."""
        named, tree = self._tree(folder)
        within = f"{named.path}/" if named.path else ""
        return {path[len(within) :]: size for path, size in tree.items() if path.startswith(within)}

    def open(self, url: str) -> RemoteFile:
        """A file of a repository."""
        named, tree = self._tree(url)
        if named.path not in tree:
            raise MissingError(url)
        found = library(url)

        def headers() -> dict[str, str]:
            token = found.get_token()
            return {"Authorization": f"Bearer {token}"} if token else {}

        address = f"{found.constants.ENDPOINT}/{named.repo}/resolve/{named.revision}/{quote(named.path)}"
        return RemoteFile(url, Ranges(address, url, headers, tree[named.path]))


STORE = _Hub()
