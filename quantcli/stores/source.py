"""The interface of every store of tensors, whatever the format of its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from quantcli.errors import UsageError
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from quantcli.metrics import Metrics
    from quantcli.stores.compact import Tensors
    from quantcli.stores.files import InputFile
    from quantcli.stores.gguf_types import Block
    from quantcli.stores.onnx_graph import Graph


Turned = Callable[[int, int, int], "NDArray[Any]"]
"""Every so many of the rows first to last: (first, last, step)."""


class HeaderDocument(NamedTuple):
    """quantcli's own document in the header of a file, the tensors of that file, and whether the header still
    matches its own digest (None: it has none)."""

    text: str
    infos: Tensors
    seal: bool | None


class Earlier(NamedTuple):
    """How the codes were stored that a tensor is decoded from, in the form of `Scheme.name`, and what they cost against
    their own original, where their file says."""

    scheme: str
    metrics: Metrics | None


class Unsplit(NamedTuple):
    """Why a tensor of experts is not arranged for a target: nothing tells which of its rows are what, or the loader of
    that target takes none that are quantized."""

    why: str
    by_loader: bool


class Source(Protocol):
    """Tensors to read, and the other files of their store. `read` may be called from several threads.

    kind: the format of its files. folder, index: the folder of its shards, and the file that lists their tensors; None
    and empty for a single file. blocks, keys: of a GGUF, the tensors that are read as U8 rows of bytes, and its
    metadata. graph: of an ONNX file, and of what is derived from one, what its nodes do with tensors. aside: weight
    files of its folder that are not part of the model, and why. earlier: tensors that are decoded from codes;
    decoded: these as they were first decoded, by the tensor that holds their codes; decoded_from: their layout, for
    people. notes: what was done to tensors before they are read, for people.
    warnings: what was left out of the file, and where in it the tensors were found. unsplit: tensors of experts that
    cannot be arranged for a target, and why; arranged: how the others were, for people. shapes: of tensors that are
    read in another shape than they have in the model. A store inherits the defaults of features it does not have.
    """

    path: str
    metadata: dict[str, str]
    kind: str
    folder: str | None = None
    index: str = ""
    blocks: Mapping[str, Block] = MappingProxyType({})
    keys: Mapping[str, Any] = MappingProxyType({})
    graph: Graph | None = None
    aside: Mapping[str, str] = MappingProxyType({})
    earlier: Mapping[str, Earlier] = MappingProxyType({})
    decoded: Mapping[str, TensorInfo] = MappingProxyType({})
    decoded_from: str = ""
    notes: Mapping[str, str] = MappingProxyType({})
    warnings: Sequence[str] = ()
    unsplit: Mapping[str, Unsplit] = MappingProxyType({})
    arranged: str = ""
    shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({})

    @property
    def documents(self) -> list[HeaderDocument]:
        """quantcli's own header documents, each with the tensors of its file; most stores have none."""
        return []

    @property
    def shards(self) -> Mapping[str, Source]:
        """Its files with tensors by their names in the folder; a single file is its only one, under an empty name."""
        return {"": self}

    @property
    def share(self) -> int:
        """Bytes of the files it is; of a part of a checkpoint, its share of them."""
        return sum(file.size for file in self.files())

    def beside(self, name: str) -> bytes | None:
        """A small file of the folder; None when there is none. Raises DataError for a link that leads out of it."""
        return None

    def raw_keys(self) -> Mapping[str, bytes]:
        """The keys of a GGUF, their values as they are stored; of what is derived from one, too."""
        return {}

    def infos(self) -> Sequence[TensorInfo]:
        """Every tensor, in file order."""

    def named(self) -> Mapping[str, TensorInfo]:
        """Every tensor by its name, in file order."""
        return {info.name: info for info in self.infos()}

    def stored_bytes(self) -> Sequence[int]:
        """Bytes that every tensor takes in the files, in order of `infos`."""
        return [info.nbytes for info in self.infos()]

    def read(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the little-endian C-order bytes of a tensor from byte `start`."""

    def read_each(self, names: Sequence[str], buffer: memoryview) -> None:
        """Fill `buffer` with tensors of one size, one after another."""
        size = len(buffer) // max(len(names), 1)
        for number, name in enumerate(names):
            self.read(name, 0, buffer[number * size : (number + 1) * size])

    def read_runs(self, name: str, start: int, step: int, runs: NDArray[np.uint8]) -> None:
        """Fill the rows of an array with runs of bytes of a tensor, the first from byte `start`, the next `step` bytes
        later."""
        for number, run in enumerate(runs):
            self.read(name, start + number * step, run.data)

    def turned(self, name: str) -> Turned | None:
        """What reads a tensor with its last two axes exchanged, where it is stored so and decoded as it is read."""
        return None

    def passed(self, name: str, start: int, size: int) -> None:
        """Declare that these bytes of a tensor will not be read again; those of a pipe are kept until then."""
        return

    def release(self, name: str) -> None:
        """Declare that a tensor will not be read again, so that whatever was kept for it can be freed."""
        return

    def files(self) -> Sequence[InputFile]:
        """The files behind it."""

    def inputs(self) -> Sequence[InputFile]:
        """Every file that is read: those behind it, and what its tensors are made of besides."""
        return self.files()

    def read_ahead(self) -> None:
        """Begin to read its tensors, which are read next and in their order; of a file of this machine nothing."""
        for file in self.files()[:1]:
            file.read_ahead()

    def interrupt(self) -> None:
        """Make reads that wait for data fail, because the run is over."""
        for file in self.files():
            file.interrupt()

    def check_unchanged(self) -> None:
        """Raise DataError when a file was changed since it was opened."""
        for file in self.files():
            file.check_unchanged()

    def close(self) -> None:
        """Close all files."""


def is_stream(source: Source) -> bool:
    """Whether it can be read only once, in order."""
    return any(file.once for file in source.files())


def need_file(source: Source, what: str) -> None:
    """Raise UsageError when the source is a pipe, which cannot seek. what: the operation that must seek."""
    if is_stream(source):
        hint = "name a file, or redirect one with <"
        raise UsageError(f"{what} must seek, and standard input is a pipe", place=[source.path], hint=hint)
