"""Lazy access to the tensors of a file, float or quantized: by name, whole or tile by tile."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, Sequence, ValuesView
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import kernels, scales
from quantcli.dtypes import DTYPES, to_float32
from quantcli.errors import DataError, printable
from quantcli.formats import code_grid, fixed_codebook
from quantcli.kernels import LEVELS, QuantParams, row_bytes
from quantcli.kernels.codebook import codebook
from quantcli.layouts.native.entries import ByName, Document, Unlisted
from quantcli.layouts.native.parts import parts, zero_shape
from quantcli.layouts.native.reading import parse
from quantcli.layouts.native.stored import StoredKept, StoredTensor
from quantcli.notebook import table
from quantcli.scales import Store
from quantcli.stores import Source, open_source
from quantcli.stores.compact import Made
from quantcli.tensors import digits, packing
from quantcli.tensors.api import QuantizedTensor
from quantcli.tensors.blocks import by_rows
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import TileSpan
from quantcli.tensors.settle import spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes, Floats
    from quantcli.kernels.codebook import Codebook
    from quantcli.scheme import Scheme


CHANGED = "its quantcli header was changed after it was written, so what it says cannot be relied on"


def not_finite(what: str, source: Source, name: str) -> DataError:
    """The error about a parameter of a tensor that is not finite."""
    return DataError(f"a stored {what} is not finite", place=[source.path, printable(name)])


class Tensor:
    """A tensor of a file: its original name, dtype and shape, and its values on demand."""

    __slots__ = ("_overall", "_source", "stored")

    def __init__(self, source: Source, stored: StoredTensor) -> None:
        self._source = source
        self.stored = stored
        self._overall: float | None = None

    def __repr__(self) -> str:
        kind = "" if self.scheme is None else f", scheme={self.scheme.name!r}"
        return f"Tensor({printable(self.name)!r}, shape={self.shape}, dtype={self.dtype!r}{kind})"

    def _repr_html_(self) -> str:
        facts = {"shape": self.shape, "dtype": self.dtype, "bytes": sum(o.nbytes for o in self.stored.outputs)}
        return table((self.name, ""), {**facts, **(self.scheme.as_dict() if self.scheme else {})}.items())

    @property
    def name(self) -> str:
        """Its name in the original model."""
        return self.stored.info.name

    @property
    def source(self) -> Source:
        """The file it is in."""
        return self._source

    @property
    def dtype(self) -> str:
        """Its original safetensors dtype, such as `BF16`."""
        return self.stored.info.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.stored.info.shape

    @property
    def scheme(self) -> Scheme | None:
        """Its scheme; None for a kept tensor."""
        return self.stored.scheme

    def read_bytes(self, name: str, start: int, size: int) -> NDArray[np.uint8]:
        """Bytes of one of the tensors it is stored as."""
        buffer = np.empty(size, np.uint8)
        self._source.read(name, start, buffer.data)
        return buffer

    def _output(self, part: str) -> TensorInfo:
        """One of the tensors that hold it."""
        assert self.stored.scheme is not None
        return self.stored.output(part)

    def _floats(self, output: TensorInfo, first: int, count: int) -> Floats:
        size = DTYPES[output.dtype].bits // 8
        return to_float32(self.read_bytes(output.name, first * size, count * size), output.dtype)

    def packed(self, span: TileSpan) -> Bytes:
        """The codes of one tile in rows of 32-bit words, as all but digits are stored."""
        assert self.stored.scheme is not None and self.stored.grouping is not None
        bits, plan = self.stored.scheme.bits, self.stored.grouping
        if plan.digits is not None:
            skipped = span.col % plan.digits.count
            codes = digits.unpack(self.digits(span), skipped + span.cols, plan.digits)
            return packing.pack(codes[:, skipped:], bits).reshape(-1)
        start = span.row * row_bytes(plan.cols, bits) + span.col * bits // 8
        return self.read_bytes(self.stored.outputs[0].name, start, span.rows * row_bytes(span.cols, bits))

    def digits(self, span: TileSpan) -> Bytes:
        """The stored bytes (rows, bytes) of the numbers with the codes of one tile as digits."""
        plan = self.stored.grouping
        assert plan is not None and plan.digits is not None
        width, name = plan.digits.row_bytes(plan.cols), self.stored.outputs[0].name
        first = span.col // plan.digits.count * plan.digits.size
        size = plan.digits.row_bytes(span.col + span.cols) - first
        if span.rows == 1 or size == width:
            return self.read_bytes(name, span.row * width + first, span.rows * size).reshape(span.rows, size)
        found = self.read_bytes(name, span.row * width, span.rows * width).reshape(span.rows, width)
        return found[:, first : first + size]

    def params(self, span: TileSpan) -> QuantParams:
        """The parameters of one tile. Raises DataError where one is not finite."""
        scheme, plan = self.stored.scheme, self.stored.grouping
        assert scheme is not None and plan is not None
        scale, zero = self.scales(span)
        if not np.isfinite(scale).all():
            raise not_finite("scale", self._source, self.name)
        scale = by_rows(scale, plan, span.row, span.rows)
        return spread(QuantParams(scale, zero, self._codebook(span)), self.stored.info, scheme, plan)

    def scales(self, span: TileSpan) -> tuple[Floats, Floats | None]:
        """Scales and zero points or offsets of one tile for which some are stored: (rows, groups), (1, channels) where
        the columns share them, or (blocks, groups) of the blocks that it has rows of."""
        scheme, plan = self.stored.scheme, self.stored.grouping
        assert scheme is not None and plan is not None
        if plan.shared == "columns":
            rows, first, groups = 1, 0, plan.scales
            start = 0
        else:
            row, first, groups = span.row // plan.height, span.col // plan.group, -(-span.cols // plan.group)
            rows = -(-(span.row + span.rows) // plan.height) - row
            start = row * plan.groups + first

        def row_params(part: str) -> Floats:
            return self._floats(self._output(part), start, rows * groups).reshape(rows, groups)

        held = parts(scheme)
        scale = np.ones((1, 1), np.float32)
        if "scale" in held:
            output = self._output("scale")
            size = DTYPES[output.dtype].bits // 8
            raw = self.read_bytes(output.name, start * size, rows * groups * size)
            with np.errstate(over="ignore", invalid="ignore"):
                found = scales.of(scheme).effective(raw, Store(output.dtype, self.overall()))
            scale = found.reshape(rows, groups)
        if "offset" in held:
            return scale, row_params("offset")
        if "zero_point" in held:
            zero = self._zero_points(0 if plan.shared else span.row, rows, first, groups)
            return scale, zero.astype(np.float32)
        return scale, None

    def overall(self) -> float:
        """The scale of the tensor, with which its stored scales are multiplied; 1 where none is stored."""
        if self.scheme is None or "global_scale" not in parts(self.scheme):
            return 1.0
        if self._overall is None:
            with np.errstate(all="ignore"):
                self._overall = float(np.float32(1) / self._floats(self._output("global_scale"), 0, 1)[0])
        return self._overall

    def levels(self, span: TileSpan) -> Floats:
        """The stored levels (tables, 2^b) of the codes of one tile of a codebook."""
        assert self.stored.scheme is not None
        output, width = self._output("codebook"), 1 << self.stored.scheme.bits
        own = len(output.shape) > 1
        found = self._floats(output, span.row * width if own else 0, (span.rows if own else 1) * width)
        return found.reshape(-1, width)

    def _codebook(self, span: TileSpan) -> Codebook | None:
        """The decoded levels for the codes of one tile."""
        scheme, plan = self.stored.scheme, self.stored.grouping
        assert scheme is not None and plan is not None
        if code_grid(scheme).mode != LEVELS:
            return None
        if scheme.format != "codebook":
            return fixed_codebook(scheme)
        levels = self.levels(span)
        if not np.isfinite(levels).all():
            raise not_finite("level", self._source, self.name)
        return codebook(levels)

    def _zero_points(self, row: int, rows: int, group: int, groups: int) -> NDArray[Any]:
        assert self.stored.scheme is not None and self.stored.grouping is not None
        output = self._output("zero_point")
        bits, width = self.stored.scheme.bits, output.shape[1]
        total, _ = zero_shape(self.stored.grouping)
        if self.stored.grouping.shared == "tensor":
            row, rows = row, min(rows, total)
        first = row // 32 * 32
        last = min(-(-(row + rows) // 32) * 32, total)
        words = row_bytes(last - first, bits) // 4
        raw = self.read_bytes(output.name, first // 32 * bits * width * 4, words * width * 4)
        matrix = np.ascontiguousarray(raw.view("<u4").reshape(words, width)[:, group : group + groups])
        return packing.unpack_columns(matrix, last - first, bits)[row - first : row - first + rows]

    def decoded(self, span: TileSpan) -> Floats:
        """The float32 weights (rows, cols) of one tile."""
        assert self.stored.scheme is not None and self.stored.grouping is not None
        params = self.params(span)
        if self.stored.grouping.shared == "columns" and span.cols != self.stored.grouping.cols:
            raise AssertionError("tiles with parameters per column are whole rows")
        group = min(self.stored.grouping.group, span.cols) or 1
        return kernels.load().decode(
            self.packed(span),
            (span.rows, span.cols),
            group,
            params,
            code_grid(self.stored.scheme),
        )

    def numpy(self) -> NDArray[Any]:
        """The values: float32 for quantized tensors and for float types numpy lacks, else in their own dtype.

        Raises DataError for types of less than a byte.
        """
        stored = self.stored
        if stored.grouping is not None:
            out = np.empty(stored.info.numel, np.float32)
            for span in stored.grouping.tiles():
                start = span.row * stored.grouping.cols + span.col
                out[start : start + span.rows * span.cols] = self.decoded(span).ravel()
            return out.reshape(stored.info.shape)
        dtype = DTYPES[stored.info.dtype]
        raw = self.read_bytes(self.name, 0, stored.info.nbytes)
        if dtype.numpy is not None:
            return raw.view(dtype.numpy).reshape(stored.info.shape)
        if not dtype.quantizable:
            raise DataError(f"numpy has no {dtype.name}", place=[self._source.path, printable(self.name)])
        return to_float32(raw, dtype.name).reshape(stored.info.shape)

    def quantized(self) -> QuantizedTensor:
        """The tensor in quantized form, in memory. Raises DataError for a kept tensor."""
        scheme, plan = self.stored.scheme, self.stored.grouping
        if scheme is None or plan is None:
            raise DataError("it is not quantized", place=[self._source.path, printable(self.name)])
        whole = TileSpan(0, plan.rows, 0, plan.cols)
        return QuantizedTensor(self.stored.info, scheme, plan, self.params(whole), self.packed(whole))


class Model(Mapping[str, Tensor]):
    """The tensors of a file by their original names. Use it in a `with` statement, or close it."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.documents: list[Document] = []
        self._listed: Sequence[StoredTensor] | None = None
        self._tensors: Mapping[str, Tensor] = Made(
            source.named(), lambda info: Tensor(source, StoredKept(info=info, reason=""))
        )
        try:
            self.documents += (parse(*header) for header in source.documents)
            if self.documents:  # files that quantcli did not write may be beside its own
                others = [Unlisted(shard.infos()) for shard in source.shards.values() if not shard.documents]
                named = ByName([*(document.tensors for document in self.documents), *others])
                self._listed, self._tensors = named.stored, Made(named, partial(Tensor, source))
        except DataError as error:
            raise error.within(source.path) from None

    def __repr__(self) -> str:
        quantized = sum(tensor.scheme is not None for tensor in self.values())
        return f"Model({printable(self.source.path)!r}, {len(self)} tensors, {quantized} quantized)"

    def _repr_html_(self) -> str:
        return table(
            ("tensor", "shape", "dtype", "scheme"),
            ((name, t.shape, t.dtype, t.scheme.name if t.scheme else "") for name, t in self.items()),
        )

    @property
    def entries(self) -> Sequence[StoredTensor]:
        """What is known of each, in file order."""
        return Unlisted(self.source.infos()) if self._listed is None else self._listed

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Name, dtype and shape of each, as it was before quantcli quantized it."""
        if not self.documents:
            return self.source.named()
        return Made(self._tensors, lambda tensor: tensor.stored.info)

    @property
    def is_quantized(self) -> bool:
        """Whether quantcli wrote it."""
        return bool(self.documents)

    @property
    def is_changed(self) -> bool:
        """Whether a quantcli header was changed after it was written, so that it cannot be trusted."""
        return any(d.intact is False for d in self.documents)

    def check_headers(self) -> None:
        """Raise DataError when a header was changed after it was written."""
        if self.is_changed:
            raise DataError(CHANGED, place=[self.source.path], hint="verify it against its original, or quantize again")

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def values(self) -> ValuesView[Tensor]:
        """The tensors in order."""
        return self._tensors.values()

    def items(self) -> ItemsView[str, Tensor]:
        """Names and tensors in order."""
        return self._tensors.items()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        self.source.close()


def open(path: str, variant: str | None = None) -> Model:
    """The tensors of a .safetensors, .npy or .npz file or a checkpoint folder, quantized or not, read on demand.
    variant: which weights of a folder to take, where it has several.

    Raises QuantcliError when it cannot be read.

    >>> import numpy as np, tempfile, os
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(os.path.join(folder, "a.npy"), np.eye(2))
    ...     with open(os.path.join(folder, "a.npy")) as model:
    ...         {name: tensor.shape for name, tensor in model.items()}
    {'a': (2, 2)}
    """
    source = open_source(str(path), variant)
    try:
        return Model(source)
    except BaseException:
        source.close()
        raise
