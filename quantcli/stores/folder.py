"""Checkpoint folders to write: everything is made in a hidden folder beside the destination and moved as one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
from types import TracebackType

from quantcli.errors import QuantcliError, UsageError, os_error
from quantcli.stores.files import InputFile, sync_folder

_WEIGHTS = (
    ".safetensors",
    ".safetensors.index.json",
    ".bin",
    ".bin.index.json",
    ".pt",
    ".pth",
    ".gguf",
    ".onnx",
    ".msgpack",
    ".h5",
)
"""Other people's weights are not side files: they would double the folder, and be loaded instead of ours."""

_SIDE_LIMIT = 1 << 26


def check_folder(path: str, *, force: bool, source: str) -> str:
    """The real path of a folder to write, or the reason why it may not be. Raises UsageError or QuantcliError."""
    target = os.path.realpath(path)
    if os.path.realpath(source) == target:
        raise UsageError("output and input are the same folder", place=[path], hint="choose another name with -o")
    if os.path.lexists(target):
        if not os.path.isdir(target):
            raise UsageError("the output exists and is not a folder", place=[path])
        if not force:
            raise UsageError("the output exists", place=[path], hint="use --force to replace it")
    parent = os.path.dirname(target)
    if not os.path.isdir(parent):
        raise QuantcliError("no such folder", place=[parent, os.path.basename(path)], hint="create it first")
    return target


class OutputFolder:
    """A folder that takes its name only when it is complete."""

    def __init__(self, path: str, *, force: bool) -> None:
        self.path, self.force = path, force
        self.parent, base = os.path.split(path)
        self.temp = os.path.join(self.parent, f".{base[:100]}.quantcli-{os.getpid()}-{secrets.token_hex(4)}.tmp")
        try:
            os.mkdir(self.temp)
        except OSError as error:
            raise os_error(error, path) from None

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.temp, ignore_errors=True)

    def write(self, name: str, content: bytes) -> None:
        """Write a side file and bring it to the disk."""
        path = os.path.join(self.temp, name)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                view = memoryview(content)
                while view:
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise os_error(error, os.path.join(self.path, name)) from None

    def copy_side_files(self, folder: str, without: tuple[str, ...]) -> list[str]:
        """Copy what lies beside the weights and in subfolders (tokenizer, pooling, licence); the names copied.

        Hidden files, links to folders and other weight formats stay behind.
        """
        copied = []
        for path, folders, names in os.walk(folder):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            below = os.path.relpath(path, folder)
            for name in sorted(names):
                relative = os.path.normpath(os.path.join(below, name))
                source = os.path.join(path, name)
                if name.startswith(".") or relative in without or name.endswith(_WEIGHTS) or not os.path.isfile(source):
                    continue
                self._copy(source, relative)
                copied.append(relative)
        return copied

    def _copy(self, source: str, relative: str) -> None:
        file = InputFile(source)
        try:
            if file.size > _SIDE_LIMIT:
                raise QuantcliError(f"a side file of {file.size} bytes", place=[source], hint="move it away")
            try:
                os.makedirs(os.path.dirname(os.path.join(self.temp, relative)), exist_ok=True)
            except OSError as error:
                raise os_error(error, os.path.join(self.path, relative)) from None
            self.write(relative, file.read(0, file.size))
        finally:
            file.close()

    def publish(self) -> None:
        """Move the folder into place; an old one is exchanged in one step, then removed."""
        sync_folder(self.temp)
        try:
            if self.force and os.path.lexists(self.path):
                _exchange(self.temp, self.path)
            else:
                if os.path.lexists(self.path):
                    raise QuantcliError(
                        "the output came into being meanwhile", place=[self.path], hint="use --force to replace it"
                    )
                os.rename(self.temp, self.path)
        except OSError as error:
            raise os_error(error, self.path) from None
        sync_folder(self.parent)


def _exchange(new: str, old: str) -> None:
    """Swap two folders. renameat2 does it at once; elsewhere the old one is moved aside first."""
    with contextlib.suppress(AttributeError, OSError):
        at_fdcwd, exchange = -100, 2
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.renameat2(at_fdcwd, os.fsencode(new), at_fdcwd, os.fsencode(old), exchange) == 0:
            return
    aside = f"{new}.old"
    os.rename(old, aside)
    try:
        os.rename(new, old)
    except OSError:
        os.rename(aside, old)
        raise
    os.rename(aside, new)
