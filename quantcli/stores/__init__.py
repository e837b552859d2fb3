"""Where tensors come from and go to. Stores know bytes, names and shapes; they know no arithmetic."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from quantcli.errors import UsageError
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.stores.files import InputFile


class HeaderDocument(NamedTuple):
    """quantcli's own document in the header of a file, the tensors of that file, and whether the header still has the
    digest of itself that was written (None: it has none)."""

    text: str
    infos: Sequence[TensorInfo]
    seal: bool | None


class Source(Protocol):
    """Tensors to read. `read` may be called from several threads."""

    path: str
    metadata: dict[str, str]

    @property
    def documents(self) -> list[HeaderDocument]:
        """quantcli's own header documents, each with the tensors of its file."""

    def infos(self) -> Sequence[TensorInfo]:
        """Every tensor, in file order."""

    def read(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the little-endian C-order bytes of a tensor from byte `start`."""

    def passed(self, name: str, start: int, size: int) -> None:
        """Say that these bytes of a tensor will not be read again; of a pipe they are kept until then."""

    def release(self, name: str) -> None:
        """Say that a tensor will not be read again, so that what was kept for it can go."""

    def files(self) -> Sequence[InputFile]:
        """The files behind it."""

    def check_unchanged(self) -> None:
        """Raise DataError when a file was changed since it was opened."""

    def close(self) -> None:
        """Close what is open."""


def is_stream(source: Source) -> bool:
    """Whether it can be read only once, in order."""
    return any(file.once for file in source.files())


def need_file(source: Source, what: str) -> None:
    """Raise UsageError when the source is a pipe, in which nothing can be found again."""
    if is_stream(source):
        hint = "name a file, or redirect one with <"
        raise UsageError(f"{what} goes back and forth, which a pipe cannot", place=[source.path], hint=hint)


def open_source(path: str) -> Source:
    """The source a path names: a folder or its index.json, .npy, .npz, .onnx, a GGUF by how it begins, or else a
    safetensors file, - for the one that standard input holds.

    Raises QuantcliError for what is missing, unreadable, damaged or of another kind.
    """
    from quantcli.stores.checkpoint import Checkpoint
    from quantcli.stores.files import InputFile
    from quantcli.stores.gguf import GgufFile, is_gguf
    from quantcli.stores.npy import NpyFile, NpzFile
    from quantcli.stores.onnx import OnnxFile
    from quantcli.stores.safetensors import SafetensorsFile

    if path == "-":
        from quantcli.stores.standard import open_input

        return SafetensorsFile(open_input())
    lower = os.fsdecode(path).lower()
    if os.path.isdir(path) or lower.endswith(".json"):
        return Checkpoint(path)
    if lower.endswith(".npy"):
        return NpyFile(path)
    if lower.endswith(".npz"):
        return NpzFile(path)
    file = InputFile(path)
    if lower.endswith(".onnx"):
        return OnnxFile(file)
    return GgufFile(file) if lower.endswith(".gguf") or is_gguf(file) else SafetensorsFile(file)
