"""Outputs on the Hugging Face hub: files are uploaded one by one, and one commit at the end makes all of them appear.

They are sent as large files of Git (LFS), in parts where they are large, without hf_xet, which takes hundreds of MiB of
memory. What the hub has already, from a run that was interrupted, is not sent again. A commit follows the one that was
there at the start, else it is refused: nobody's work is lost.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from quantcli import __version__
from quantcli.errors import QuantcliError, UsageError, printable
from quantcli.stores import remote
from quantcli.stores.remote import hub
from quantcli.stores.remote.reading import PassingError
from quantcli.stores.remote.spool import SpooledKind
from quantcli.waiting import interruptible

LARGEST = 50 * 10**9
"""Bytes of the largest file that the hub takes by LFS."""

WEIGHTS = re.compile(
    r"\.(?:safetensors|gguf|onnx|onnx_data|onnx\.data|bin|pt|pth|ckpt|npz|npy|h5|msgpack|index\.json)$", re.IGNORECASE
)
"""Files of weights, and indexes of them."""

T = TypeVar("T")

_settings = threading.Lock()


@contextlib.contextmanager
def _unlogged(name: str) -> Iterator[None]:
    """Without what a library logs beside errors."""
    log = logging.getLogger(name)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


@contextlib.contextmanager
def _plainly(url: str) -> Iterator[None]:
    """Uploads without hf_xet, bars of their own, and warnings, which tell of the library itself, of a model card that
    is as its original was, or of a commit that changes nothing."""
    found = hub.library(url)
    with _settings, warnings.catch_warnings(), _unlogged("huggingface_hub"):
        warnings.simplefilter("ignore")
        xet, bars = found.constants.HF_HUB_DISABLE_XET, found.utils.are_progress_bars_disabled()
        found.constants.HF_HUB_DISABLE_XET = True
        if not bars:
            found.utils.disable_progress_bars()
        try:
            yield
        finally:
            found.constants.HF_HUB_DISABLE_XET = xet
            if not bars:
                found.utils.enable_progress_bars()


class HubSink:
    """A commit that is put together. head: the commit that it follows, empty where there is no repository yet; held:
    the files of that."""

    def __init__(self, url: str, folder: bool) -> None:
        self.url, self._folder = url, folder
        self.named = hub.parsed(url)
        self._api = hub.library(url).HfApi()
        self._head, self._branches = "", dict[str, str]()
        self._held: Mapping[str, str] = {}
        self._added: dict[str, Any] = {}

    def _call(self, call: Callable[[], T]) -> T:
        return hub.called(call, self.url)

    # ---- what is there ----------------------------------------------------------------------------------------------

    @property
    def _is_new(self) -> bool:
        """Whether the branch is to be made."""
        return self._branch not in self._branches

    @property
    def _branch(self) -> str:
        return self.named.revision or "main"

    def check(self, *, force: bool) -> None:
        """Raise UsageError where there is an output already and `force` is not given, QuantcliError where nothing can
        be written."""
        if hub.is_commit(self._branch) or self._branch.startswith("refs/"):
            raise UsageError("outputs are written to branches", place=[self.url], hint="name one, or none for main")
        who = self._call(self._api.whoami)
        if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
            hint = "make one that may write, and set HF_TOKEN or log in with: hf auth login"
            raise QuantcliError("the token may only read", place=[self.url], hint=hint)
        self._look()
        if self._is_new:
            return
        last = self._path("").rstrip("/")
        if not self._folder:
            found = [last] if last in self._held else []
        elif last in self._held:
            raise UsageError("the output exists and is not a folder", place=[self.url])
        else:
            found = self._weights()
        if found and not force:
            what = "the repository has a model already" if self._folder else "the output exists"
            more = f" ({found[0]}{', ...' if len(found) > 1 else ''})" if self._folder else ""
            raise UsageError(what + more, place=[self.url], hint="use --force to replace it")

    def _look(self) -> None:
        """Find out what there is."""
        refs = self._call(self._refs)
        if refs is None:
            return
        self._branches = {one.name: one.target_commit for one in refs.branches}
        if any(one.name == self._branch for one in refs.tags):
            raise UsageError("this is a tag, and outputs are written to branches", place=[self.url])
        self._head = self._branches.get(self._branch) or self._branches.get("main") or ""
        if self._head:
            self._held = self._call(self._tree)

    def _refs(self) -> Any:
        """The branches and tags of the repository; None where there is none."""
        errors = hub.library(self.url).errors
        try:
            return self._api.list_repo_refs(self.named.repo)
        except errors.GatedRepoError:
            raise
        except errors.RepositoryNotFoundError:
            return None

    def _tree(self) -> dict[str, str]:
        """The files of the head: what tells the content of each."""
        entries = self._api.list_repo_tree(self.named.repo, recursive=True, revision=self._head)
        return {e.path: e.lfs.sha256 if e.lfs else e.blob_id for e in entries if hasattr(e, "size")}

    def _path(self, name: str) -> str:
        """The path in the repository of a file of the output."""
        if not self._folder:
            return os.path.join(os.path.dirname(self.named.path), name) if name else self.named.path
        return os.path.join(self.named.path, name) if self.named.path else name

    def _weights(self) -> list[str]:
        """The files of weights that an output folder replaces."""
        within = self._path("")
        return [path for path in self._held if path.startswith(within) and WEIGHTS.search(path)]

    # ---- sending ----------------------------------------------------------------------------------------------------

    def begin(self, *, force: bool) -> None:
        """Make the repository, where there is none. Raises QuantcliError."""
        self.check(force=force)
        if not self._branches:
            self._create(private=None)

    def make_private(self) -> None:
        """Make the repository, private, where there is none. Raises UsageError where there is a public one."""
        self._look()
        if not self._branches:
            self._create(private=True)
        elif not self._call(lambda: self._api.model_info(self.named.repo)).private:
            hint = "leave out --private, or make it private in its settings"
            raise UsageError("the repository exists and is public", place=[self.url, "--private"], hint=hint)

    def _create(self, *, private: bool | None) -> None:
        """Make the repository. private: None for what its owner has set."""

        def made() -> None:
            errors = hub.library(self.url).errors
            try:
                self._api.create_repo(self.named.repo, private=private)
            except errors.HfHubHTTPError as error:
                status = getattr(error.response, "status_code", 0)
                if status == 409:
                    raise QuantcliError("another process created it", place=[self.url], hint="run again") from None
                if status in (400, 403, 404):
                    owner = self.named.repo.partition("/")[0]
                    problem = f"this token may not create a repository of {owner}"
                    hint = "check the name of the organisation, and the rights of the token"
                    raise QuantcliError(problem, place=[self.url], hint=hint) from None
                raise

        self._call(made)
        self._look()
        if not self._branches:
            self._branches = {"main": ""}

    def check_card(self, content: bytes) -> None:
        """Raise UsageError where the hub does not take the front matter of a model card."""
        found = hub.library(self.url)
        asked = {"repoType": "model", "content": content.decode("utf-8", "replace")}

        def answer() -> Any:
            got = found.utils.get_session().post(f"{found.constants.ENDPOINT}/api/validate-yaml", json=asked)
            if got.status_code != 400:
                found.utils.hf_raise_for_status(got)
            return got.json() if got.status_code == 400 else {}

        wrong = [printable(str(one.get("message")), 200) for one in self._call(answer).get("errors", [])]
        if wrong:
            hint = "correct the lines between --- at its beginning"
            raise UsageError(f"the hub does not take it: {wrong[0]}", place=["README.md"], hint=hint)

    def send(self, name: str, path: str) -> None:
        """Upload a file. Raises QuantcliError."""
        place, found = self._path(name), hub.library(self.url)

        def uploaded() -> Any:
            one = found.CommitOperationAdd(path_in_repo=place, path_or_fileobj=path)
            try:
                self._api.preupload_lfs_files(self.named.repo, [one], revision=self._uploading_to, free_memory=True)
            except (RuntimeError, ValueError) as error:
                raise self._refused(error, name) from None
            return one

        with _plainly(self.url):
            one = self._call(lambda: interruptible(uploaded))
        if one._should_ignore:
            hint = "take it out of there"
            raise QuantcliError(
                "the .gitignore of the repository leaves this file out", place=[self.url, name], hint=hint
            )
        if one._upload_mode == "regular":  # small files go with the commit
            with open(path, "rb") as file:
                one.path_or_fileobj = file.read()
        self._added[place] = one

    @property
    def _uploading_to(self) -> str:
        """The branch whose rights and settings count: main, where the other is yet to be made."""
        return "main" if self._is_new else self._branch

    def _refused(self, error: Exception, name: str) -> Exception:
        """What the failure of an upload is: huggingface_hub wraps errors, and those of the hub in words."""
        cause = error.__cause__
        if isinstance(error, RuntimeError) and isinstance(cause, Exception):
            request = getattr(cause, "request", None)
            address = str(getattr(request, "url", ""))
            status = getattr(getattr(cause, "response", None), "status_code", 0)
            if status == 403 and not address.startswith(hub.library(self.url).constants.ENDPOINT):
                return PassingError("a link for an upload has expired")
            return hub.problem_of(cause, self.url)
        said = str(error).splitlines()[-1][:200] if str(error) else type(error).__name__
        return QuantcliError(f"the hub does not take the file: {said}", place=[self.url, name])

    def rename(self, old: str, new: str) -> None:
        """Give a file another path in the commit."""
        one = self._added.pop(self._path(old))
        one.path_in_repo = self._path(new)
        self._added[self._path(new)] = one

    # ---- the commit -------------------------------------------------------------------------------------------------

    def publish(self) -> None:
        """Make the commit, and the branch where there is none. Raises QuantcliError."""
        found = hub.library(self.url)
        gone = [path for path in (self._weights() if self._folder else ()) if path not in self._added]
        operations = [*self._added.values(), *(found.CommitOperationDelete(path_in_repo=path) for path in gone)]
        if self._is_new:
            self._call(
                lambda: self._api.create_branch(self.named.repo, branch=self._branch, revision=self._head or None)
            )
        try:
            self._commit(operations, gone)
        except BaseException:
            if self._is_new:
                with contextlib.suppress(Exception):
                    self._api.delete_branch(self.named.repo, branch=self._branch)
            raise
        remote.forget()

    def _commit(self, operations: list[Any], gone: list[str]) -> None:
        """Make the commit. An answer that is lost may have been a success: then the next try finds that it is there."""
        tries = 0

        def committed() -> None:
            nonlocal tries
            tries += 1
            try:
                self._api.create_commit(
                    self.named.repo,
                    operations,
                    commit_message=f"Written by quantcli {__version__}",
                    revision=self._branch,
                    parent_commit=self._head or None,
                )
            except found.errors.HfHubHTTPError as error:
                if getattr(error.response, "status_code", 0) != 412:
                    raise
                if tries > 1 and self._is_there(gone):
                    return
                problem = "the branch has moved since the run began, and nothing was changed in it"
                hint = "run the same command again: what was uploaded is not sent again"
                raise QuantcliError(problem, place=[self.url], hint=hint) from None
            except ValueError as error:
                raise QuantcliError(_line(error), place=[self.url]) from None

        found = hub.library(self.url)
        with _plainly(self.url):
            self._call(committed)

    def _is_there(self, gone: list[str]) -> bool:
        """Whether the branch holds just what the commit would have brought."""
        self._head = next(r.target_commit for r in self._refs().branches if r.name == self._branch)
        held = self._tree()
        same = all(held.get(path) == one._local_oid for path, one in self._added.items())
        return same and not any(path in held for path in gone)

    def abandon(self) -> None:
        """Nothing: what was uploaded belongs to no commit."""


def _line(error: Exception) -> str:
    """A refusal of the library as one line."""
    return " ".join(line.strip("- ") for line in str(error).splitlines() if line.strip())[:300]


WRITER = SpooledKind(HubSink, LARGEST)
