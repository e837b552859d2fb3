"""The tensors of any model as floats by name, as a loader sees them, whatever the store and layout."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, ItemsView, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import kernels
from quantcli.dtypes import DTYPES, from_float32, to_float32
from quantcli.errors import DataError, printable
from quantcli.layouts import evidence, headers, reader
from quantcli.layouts.native import model as native
from quantcli.layouts.native.held import held
from quantcli.layouts.native.model import Tensor
from quantcli.layouts.reader import Found, Held, Read, is_published, none_regrouped, not_moved
from quantcli.layouts.regrouped import Regrouped
from quantcli.notebook import table
from quantcli.stores import places, signals
from quantcli.stores.compact import InOrder, Items
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Floats
    from quantcli.scheme import Scheme
    from quantcli.stores import Source
    from quantcli.tensors.rows import Grouping, TileSpan

BLOCK = 1 << 20
"""Weights of a float tensor compared at a time."""

PIECE = 1 << 16
"""Weights decoded at a time where rows are stored one after another: float32 of these stay in the cache."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class View:
    """A tensor as a loader of the file sees it.

    scheme, bits: how it is stored, None for a float tensor. bytes_out: its bytes as stored. stored: a native tensor,
    quantized or kept; None for one that is not stored like that, but decoded or put in order. blocks: runs of weights,
    first and last in C order, that are decoded together; read(first, last): any run as float32, of codes what they
    stand for; encoded(first, last): the same in its own dtype, where the library of its layout rounds to that. step:
    weights that are best decoded at a time. made_of: the tensors that store one without `stored`; unused: those of them
    that its values do without, by name. held(): its codes, or why they are not moved. turned(first, last, step): of one
    that is stored with its last two axes exchanged, every step-th row of that in its own dtype. outputs_first: whether
    a matrix is [out, in], where known. regrouped(): how its groups lie, where held() gives no codes, as far as known.
    """

    info: TensorInfo
    scheme: str | None
    bits: int | None
    bytes_out: int
    stored: Tensor | None
    blocks: tuple[tuple[int, int], ...]
    read: Callable[[int, int], Floats]
    made_of: tuple[TensorInfo, ...] = ()
    encoded: Callable[[int, int], NDArray[Any]] | None = None
    step: int = PIECE
    unused: tuple[str, ...] = ()
    held: Callable[[], Held | str] = not_moved
    turned: Callable[[int, int, int], NDArray[Any]] | None = None
    outputs_first: bool | None = None
    regrouped: Callable[[], Regrouped | None] = none_regrouped

    @property
    def parts(self) -> tuple[TensorInfo, ...]:
        """The tensors that store it."""
        return self.made_of if self.stored is None else self.stored.stored.outputs

    @property
    def numeric(self) -> bool:
        """Whether it has float values."""
        return self.scheme is not None or DTYPES[self.info.dtype].quantizable

    def values(self, first: int, last: int, dtype: str | None = None) -> NDArray[Any]:
        """A run of weights, rounded to its dtype or another one, as an array whose bytes a file can hold."""
        wanted = dtype or self.info.dtype
        if self.encoded is not None and wanted == self.info.dtype:
            return self.encoded(first, last)
        return as_stored(self.read(first, last), self.info.dtype, wanted)

    def rounded(self, first: int, last: int) -> Floats:
        """A run of weights as float32, rounded to its own dtype where the library of its layout does that."""
        if self.encoded is None:
            return self.read(first, last)
        return to_float32(self.encoded(first, last).view(np.uint8), self.info.dtype)

    def __repr__(self) -> str:
        kind = f", scheme={printable(self.scheme)!r}" if self.scheme is not None else ""
        return f"View({printable(self.info.name)!r}, shape={self.info.shape}, dtype={self.info.dtype!r}{kind})"


def as_stored(decoded: Floats, own: str, wanted: str) -> NDArray[Any]:
    """Decoded weights of a dtype of their own in the one that is wanted, as an array whose bytes a file can hold."""
    if wanted == own == "F16":  # the outermost step may reach beyond float16; the original weight cannot have
        decoded = np.clip(decoded, -65504, 65504)
    return _rounded(decoded, wanted)


def _rounded(values: Floats, dtype: str) -> NDArray[Any]:
    """Finite values in another float dtype, as an array whose bytes a file can hold."""
    if dtype == "BF16":
        return kernels.load().bfloat16(np.ascontiguousarray(values))
    return from_float32(values, dtype)


class _Views(Mapping[str, View]):
    """The views of decoded tensors, and then of plain ones, each of which is made when it is asked for: all views of
    100,000 small tensors take 100 MiB."""

    def __init__(
        self, decoded: Mapping[str, View], plain: Mapping[str, Tensor], make: Callable[[Tensor], View]
    ) -> None:
        self.decoded, self.plain, self._make = decoded, plain, make

    def __getitem__(self, name: str) -> View:
        return self.decoded[name] if name in self.decoded else self._make(self.plain[name])

    def __contains__(self, name: object) -> bool:
        return name in self.decoded or name in self.plain

    def __iter__(self) -> Iterator[str]:
        return chain(self.decoded, self.plain)

    def values(self) -> InOrder[View]:
        """The views in order."""
        return InOrder(self, lambda: chain(self.decoded.values(), map(self._make, self.plain.values())))

    def __len__(self) -> int:
        return len(self.decoded) + len(self.plain)


class Model(Mapping[str, View]):
    """The tensors of a file or folder by their original names, decoded when they are asked for.

    path: as given. stored: its tensors as stored. config: the contents of config.json, where they are known already.
    Layouts are detected when the first tensor is asked for; a model quantized in an unsupported layout is never shown
    as floats, but raises DataError. Use it in a `with` statement, or close it.
    """

    def __init__(self, stored: native.Model, path: str, config: Mapping[str, Any] | None = None) -> None:
        self.stored, self.path, self._config = stored, path, config

    def __repr__(self) -> str:  # which must not fail where a layout is not supported
        return f"Model({printable(self.path)!r}, {self.source.kind}, {len(self.stored)} stored tensors)"

    def _repr_html_(self) -> str:
        return table(
            ("tensor", "shape", "dtype", "scheme", "bytes"),
            ((name, v.info.shape, v.info.dtype, v.scheme or "", v.bytes_out) for name, v in self.items()),
        )

    @property
    def source(self) -> Source:
        """Its source of bytes."""
        return self.stored.source

    @property
    def is_native(self) -> bool:
        """Whether quantcli wrote it."""
        return self.stored.is_quantized

    @property
    def file_bytes(self) -> int:
        """Bytes of the files behind it."""
        return sum(file.size for file in self.source.files())

    @property
    def quantized(self) -> Mapping[str, View]:
        """The tensors that are stored as codes. Raises DataError."""
        if self.own is None:
            return self._views.decoded
        return {name: view_of(tensor) for name, tensor in self.own.items() if tensor.scheme is not None}

    def kinds(self) -> Iterator[tuple[TensorInfo, bool]]:
        """Name, dtype and shape of every tensor, and whether it is stored as codes. Raises DataError."""
        if self.own is None:
            coded = ((view.info, view.scheme is not None) for view in self._views.decoded.values())
            return chain(coded, ((tensor.stored.info, False) for tensor in self._views.plain.values()))
        return ((tensor.stored.info, tensor.scheme is not None) for tensor in self.own.values())

    @property
    def codes(self) -> int:
        """How many tensors are stored as codes. Raises DataError."""
        return sum(coded for _, coded in self.kinds())

    @property
    def own(self) -> native.Model | None:
        """Its tensors where quantcli wrote them, so that a view of each need not be made; else None."""
        return self.stored if self.is_native and self._config is None else None

    @cached_property
    def _views(self) -> _Views:
        if self.own is not None:
            return _Views({}, self.stored, view_of)
        try:
            stated = _stated(self.source, self.path, self._config)
            infos = self.stored.infos
            found = reader.find(infos, stated, self._read)
        except DataError as error:
            raise error.within(self.path) from None
        parts = {part.name for weight in found for part in weight.parts}
        left = {name: info for name, info in infos.items() if name not in parts} if parts else infos
        seen = evidence.undecoded(self.source, left, stated, others=bool(found))
        if seen is not None:
            problem = f"it is quantized in a layout that quantcli does not decode ({seen.layout}): {seen.seen}"
            raise DataError(problem, place=[self.path], hint="start from the original")
        shown = {weight.name: _decoded(weight, self._read) for weight in found}
        plain = {name: tensor for name, tensor in self.stored.items() if name not in parts} if parts else self.stored
        return _Views(shown, plain, _float)

    def _read(self, name: str, start: int, size: int, count: int = 1, step: int = 0) -> NDArray[np.uint8]:
        if count == 1:
            return self.stored[name].read_bytes(name, start, size)
        runs = np.empty((count, size), np.uint8)
        self.source.read_runs(name, start, step, runs)
        return runs.reshape(-1)

    def __getitem__(self, name: str) -> View:
        return self._views[name]

    def __contains__(self, name: object) -> bool:
        return name in self._views

    def values(self) -> InOrder[View]:
        """The views of all, in order."""
        return self._views.values()

    def items(self) -> ItemsView[str, View]:
        """Names and views, in order."""
        return Items(self)

    def __iter__(self) -> Iterator[str]:
        return iter(self._views if self.own is None else self.own)

    def __len__(self) -> int:
        return len(self._views if self.own is None else self.own)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        self.stored.close()


def open_model(
    path: str, config: Mapping[str, Any] | None = None, *, as_float: bool = False, variant: str | None = None
) -> Model:
    """The model at a path or URL: a file or folder in any store and layout. config: the contents of config.json, where
    known already. as_float: whether its integers are read as the signal they stand for. variant: which weights of a
    folder to take, where it has several.

    Raises QuantcliError when it cannot be read.

    >>> import tempfile, os
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(os.path.join(folder, "a.npy"), np.eye(2))
    ...     with open_model(os.path.join(folder, "a.npy")) as model:
    ...         {name: view.read(0, 4).tolist() for name, view in model.items()}
    {'a': [1.0, 0.0, 0.0, 1.0]}
    """
    path = places.pinned(path)
    stored = native.open(path, variant)
    if not as_float:
        return Model(stored, path, config)
    try:
        return Model(native.Model(signals.as_floats(stored.source)), path, config)
    except BaseException:
        stored.close()
        raise


def _stated(source: Source, path: str, config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The settings that tell how tensors are stored: from the file itself for GGUF and ONNX, else from the given
    config.json, the one beside the file or the record in an export's header, and from what headers say."""
    if source.kind == "gguf":
        return {source.kind: source.blocks}
    if source.kind == "onnx":
        return {source.kind: source.graph}
    found = evidence.stated(source, evidence.beside(path) if config is None else config)
    return {**found, **headers.told(source)}


@lru_cache(maxsize=64)
def runs_of(total: int, step: int) -> tuple[tuple[int, int], ...]:
    """Runs of up to `step` weights, first and last."""
    return tuple((first, min(first + step, total)) for first in range(0, total, step))


def _float(tensor: Tensor) -> View:
    info = tensor.stored.info
    size = DTYPES[info.dtype].bits // 8

    def read(first: int, last: int) -> Floats:
        return to_float32(tensor.read_bytes(info.name, first * size, (last - first) * size), info.dtype)

    return View(
        info=info,
        scheme=None,
        bits=None,
        bytes_out=info.nbytes,
        stored=tensor,
        blocks=runs_of(info.numel, BLOCK),
        read=read,
    )


def view_of(tensor: Tensor) -> View:
    """A tensor that quantcli quantized, or a float tensor."""
    return _native(tensor) if tensor.scheme is not None else _float(tensor)


@lru_cache(maxsize=64)
def _told(scheme: Scheme, grouping: Grouping) -> tuple[str, tuple[TileSpan, ...], tuple[tuple[int, int], ...]]:
    """The name of a scheme, the tiles of a tensor, and the first weight of each and the one after its last."""
    spans = tuple(grouping.tiles())
    starts = (span.row * grouping.cols + span.col for span in spans)
    return scheme.name, spans, tuple((start, start + span.rows * span.cols) for start, span in zip(starts, spans))


def _native(tensor: Tensor) -> View:
    stored, grouping = tensor.stored, tensor.stored.grouping
    assert grouping is not None and stored.scheme is not None
    name, spans, blocks = _told(stored.scheme, grouping)

    def read(first: int, last: int) -> Floats:
        begin = bisect_right(blocks, first, key=itemgetter(1))
        if blocks[begin : begin + 1] == ((first, last),):
            return tensor.decoded(spans[begin]).ravel()
        found = np.empty(last - first, np.float32)
        for at in range(begin, bisect_left(blocks, last, key=itemgetter(0))):
            start, end = blocks[at]
            low, high = max(start, first), min(end, last)
            found[low - first : high - first] = tensor.decoded(spans[at]).ravel()[low - start : high - start]
        return found

    return View(
        info=stored.info,
        scheme=name,
        bits=stored.scheme.bits,
        bytes_out=stored.bytes_out,
        stored=tensor,
        blocks=blocks,
        read=read,
        held=partial(held, tensor),
        step=blocks[0][1],
    )


def _decoded(weight: Found, parts: Read) -> View:
    cols = weight.shape[-1]
    dtype = weight.dtype if is_published(weight.scheme) else "F32"
    info = TensorInfo(weight.name, dtype, weight.shape)
    rows = info.numel // cols
    step = weight.unit * max(1, BLOCK // (cols * weight.unit))

    def exact(first: int, last: int) -> Floats:
        low, high = first // cols // weight.unit * weight.unit, -(-last // cols)
        decoded = weight.decode(parts, low, min(-(-high // weight.unit) * weight.unit, rows)).ravel()
        return decoded[first - low * cols : last - low * cols]

    def encoded(first: int, last: int) -> NDArray[Any]:
        return _rounded(exact(first, last), dtype)

    def turned(first: int, last: int, step: int) -> NDArray[Any]:
        assert weight.turned is not None
        return _rounded(weight.turned(parts, first, last, step), dtype)

    return View(
        info=info,
        scheme=weight.scheme,
        bits=weight.bits,
        bytes_out=sum(part.nbytes for part in weight.parts),
        stored=None,
        blocks=runs_of(info.numel, step * cols),
        read=exact,
        made_of=weight.parts,
        encoded=None if dtype == "F32" else encoded,
        step=max(PIECE // cols, 1) * cols if weight.unit == 1 else step * cols,
        unused=tuple(part.name for part in weight.unused),
        held=partial(weight.held, parts),
        turned=turned if weight.turned is not None else None,
        outputs_first=weight.outputs_first,
        regrouped=partial(weight.regrouped, parts),
    )
