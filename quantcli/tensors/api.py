"""Pure functions on arrays: quantize, dequantize, measure.

The passes run the same steps on tiles of a file: gather, calibrate, settle, encode, measure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import kernels
from quantcli import metrics as metric
from quantcli.asking import given, takes_keywords
from quantcli.dtypes import DTYPES, to_float32
from quantcli.errors import DataError, UsageError
from quantcli.formats import code_grid
from quantcli.kernels import SUPER, Kernels, QuantParams, Tile, row_bytes
from quantcli.kernels.codebook import joined_codebooks
from quantcli.notebook import table
from quantcli.scheme import AUTO, Scheme, scale_dtype_of
from quantcli.tensors import packing
from quantcli.tensors.decided import Quantized
from quantcli.tensors.digits import canonical
from quantcli.tensors.fit import Misfit, NotFinite
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import TILE, Grouping, TileSpan, column_repeats, grouping_of
from quantcli.tensors.settle import default_scale_dtype, part
from quantcli.tensors.tiles import as_tile, read_span, span_bytes
from quantcli.tensors.trials import Trials

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes, Floats
    from quantcli.metrics import Metrics


@dataclass(frozen=True, slots=True, repr=False)
class QuantizedTensor:
    """A tensor in quantized form; `dequantize` needs nothing else.

    packed holds rows of whole 32-bit words, code i of a row in bits [i*b, (i+1)*b).

    >>> import numpy as np
    >>> quantize(np.eye(4, 64, dtype=np.float32), bits=4, group_size=32)
    QuantizedTensor(shape=(4, 64), dtype='F32', scheme='w4g32', calibration='mse')
    """

    info: TensorInfo
    scheme: Scheme
    grouping: Grouping
    params: QuantParams
    packed: Bytes

    @property
    def codes(self) -> NDArray[Any]:
        """Integers in the tensor's shape: signed for symmetric schemes (int8, or int16 above 8 bits), unsigned for
        asymmetric ones; -1 and +1 for one symmetric bit."""
        unsigned = packing.unpack(self.packed, self.grouping.rows, self.grouping.cols, self.scheme.bits)
        if self.grouping.digits is not None:
            unsigned = canonical(unsigned, self.grouping.digits)
        return packing.signed(unsigned, self.scheme).reshape(self.info.shape)

    @property
    def scale(self) -> NDArray[np.float32]:
        """Scale of every group, in the shape the file stores: (rows, groups) for a matrix."""
        return _stored(self.params.scale, self.info.shape, self.scheme, self.grouping)

    @property
    def zero_point(self) -> NDArray[Any] | None:
        """Zero point of every group, unsigned integers in the scale's shape (float32 offsets when the scheme has
        `zero_point="float"`); None when symmetric."""
        if self.params.zero is None:
            return None
        zero = _stored(self.params.zero, self.info.shape, self.scheme, self.grouping)
        return (
            zero if self.scheme.zero_point == "float" else zero.astype(np.uint16 if self.scheme.bits > 8 else np.uint8)
        )

    def __repr__(self) -> str:
        shown = f"shape={self.info.shape}, dtype={self.info.dtype!r}, scheme={self.scheme.name!r}"
        return f"QuantizedTensor({shown}, calibration={self.scheme.calibration!r})"

    def _repr_html_(self) -> str:
        facts = {"shape": self.info.shape, "dtype": self.info.dtype, "scales": self.grouping.scale_shape}
        return table((self.scheme.name, ""), {**facts, **self.scheme.as_dict()}.items())

    def dequantize(self) -> NDArray[np.float32]:
        """The decoded weights, float32 in the tensor's shape."""
        return dequantize(self)

    def metrics(self, array: NDArray[Any]) -> Metrics:
        """The error of decoding against the original weights."""
        return measure(self, array)


def _stored(params: Floats, shape: tuple[int, ...], scheme: Scheme, grouping: Grouping) -> Floats:
    """Group parameters in the shape a file stores them."""
    if grouping.shared == "columns":
        outer, channels, inner = column_repeats(shape, scheme.axis)
        params = params.reshape(outer, channels, inner)[0, :, 0]
    elif grouping.height > 1:
        params = params[:: grouping.height]
    elif params.shape[0] != grouping.rows:
        params = np.broadcast_to(params, (grouping.rows, grouping.groups))
    return np.ascontiguousarray(params).reshape(grouping.scale_shape)


def _weights(array: NDArray[Any]) -> tuple[NDArray[np.uint8], str]:
    """Little-endian C-order bytes of a float array and their safetensors dtype."""
    array = np.asarray(array)
    if array.dtype.name == "bfloat16":
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8), "BF16"
    names = {"f2": "F16", "f4": "F32", "f8": "F64"}
    name = names.get(array.dtype.str[1:])
    if name is None:
        raise DataError(
            f"an array of {array.dtype} cannot be quantized", hint="use float16, bfloat16, float32 or float64"
        )
    return np.ascontiguousarray(array.astype(DTYPES[name].numpy, copy=False)).reshape(-1).view(np.uint8), name


def _tiles(raw: NDArray[np.uint8], dtype: str, plan: Grouping) -> Iterator[tuple[TileSpan, Tile]]:
    size = DTYPES[dtype].bits // 8
    for span in plan.tiles():
        start = (span.row * plan.cols + span.col) * size
        yield span, as_tile(raw[start : start + span.rows * span.cols * size], dtype, span, plan.group)


@takes_keywords
def quantize(array: NDArray[Any], scheme: Scheme | None = None, **asked: Any) -> QuantizedTensor:
    """The array in quantized form.

    array: float16, bfloat16, float32 or float64 (rounded to float32 first) of any shape; it is not modified.
    scheme: or, in its place, the keywords of `Scheme`. Raises UsageError for keywords that contradict each other, or
    given beside a scheme; DataError for NaN, infinity, values beyond float32 and scales beyond their dtype.

    >>> import numpy as np
    >>> quantize(np.array([[-1.0, 0.5, 0.25, 7.0]]), bits=4, calibration="minmax").codes.tolist()
    [[-1, 0, 0, 7]]
    """
    scheme = given(scheme, asked)
    raw, dtype = _weights(array)
    info = TensorInfo("array", dtype, tuple(np.asarray(array).shape))
    grouping = grouping_of(info.shape, scheme)
    if info.numel == 0:
        raise DataError("an empty array cannot be quantized")
    if scheme.rotation:
        raise UsageError("arrays are not rotated", place=["rotation"], hint="quantize a file with --to comfyui")
    if scheme.storage == "super-blocks" and grouping.cols % SUPER:
        raise DataError(f"rows of {grouping.cols} are not whole super-blocks of {SUPER}")
    first = default_scale_dtype(scheme, dtype)
    for scale_dtype in (first,) if scheme.scale_dtype != AUTO or first == "F32" else (first, "F32"):
        tensor = Quantized(info=info, reason="", scheme=scheme, grouping=grouping, scale_dtype=scale_dtype)
        try:
            return _encoded(Trials(tensor, rival=None), raw, kernels.load())
        except NotFinite:
            raise DataError(nonfinite(raw, dtype, 0).describe()) from None
        except Misfit:
            continue
    raise scale_misfit(scheme)


def _encoded(trials: Trials, raw: NDArray[np.uint8], kernels: Kernels) -> QuantizedTensor:
    """A whole array quantized with the best of the candidates."""

    def read(start: int, block: NDArray[np.uint8]) -> None:
        block[...] = raw[start : start + block.size]

    while trials.spans:
        for index, span in enumerate(trials.spans):
            block = np.empty(span_bytes(trials.chosen, span, strips=trials.by_strips), np.uint8)
            tile = read_span(trials.chosen, span, read, block, strips=trials.by_strips)
            trials.see(kernels, tile, index)
        trials.conclude()
    info, plan, scheme = trials.info, trials.plan, trials.chosen.scheme
    width = row_bytes(plan.cols, scheme.bits)
    packed = np.empty(plan.rows * width, np.uint8)
    found = []
    for span, tile in _tiles(raw, info.dtype, plan):
        at = span.row * width + span.col * scheme.bits // 8
        out = packed[at : at + span.rows * row_bytes(span.cols, scheme.bits)]
        found.append(trials.encode(kernels, tile, span, out).params)
    if scheme.scale_dtype == AUTO:
        scheme = scheme.with_scale_dtype(scale_dtype_of(trials.chosen.scale_dtype))
    return QuantizedTensor(info, scheme, plan, trials.chosen.whole or _joined(found, plan), packed)


def _joined(found: list[QuantParams], plan: Grouping) -> QuantParams:
    """Parameters (rows, groups) of an array from those of its tiles, whole rows or runs of groups of one row."""
    axis = 0 if plan.cols <= TILE else 1
    books = [p.codebook for p in found if p.codebook is not None]
    book = joined_codebooks(books, plan.rows) if books else None

    def join(arrays: list[Any]) -> Any:
        return None if arrays[0] is None else np.concatenate(arrays, axis).reshape(plan.rows, plan.groups)

    return QuantParams(join([p.scale for p in found]), join([p.zero for p in found]), book)


def scale_misfit(scheme: Scheme) -> DataError:
    """The error for a scale that its dtype cannot hold."""
    if scheme.storage == "super-blocks":
        return DataError("float16 does not hold the scale of a super-block", hint="keep the tensor with --exclude")
    return DataError(
        f"a scale does not fit {'float32' if scheme.scale_dtype == AUTO else scheme.scale_dtype}",
        hint="use --scale-dtype float32" if scheme.scale_dtype not in (AUTO, "float32") else "its range is too wide",
    )


def dequantize(tensor: QuantizedTensor) -> NDArray[np.float32]:
    """The decoded weights, float32 in the tensor's shape: what every reader of the stored codes gets.

    >>> import numpy as np
    >>> dequantize(quantize(np.array([-1.0, 0.5, 7.0]), bits=4, calibration="minmax")).tolist()
    [-1.0, 0.0, 7.0]
    """
    plan, params = tensor.grouping, tensor.params
    values = kernels.load().decode(tensor.packed, (plan.rows, plan.cols), plan.group, params, code_grid(tensor.scheme))
    return values.reshape(tensor.info.shape)


def measure(tensor: QuantizedTensor, array: NDArray[Any]) -> Metrics:
    """The error of decoding the tensor against the original weights, summed as the passes over files do.

    Raises DataError when the shapes differ.
    """
    if tuple(np.asarray(array).shape) != tensor.info.shape:
        raise DataError(f"an array of shape {np.asarray(array).shape} was not quantized to {tensor.info.shape}")
    raw, dtype = _weights(array)
    loops, grid, plan, bits = kernels.load(), code_grid(tensor.scheme), tensor.grouping, tensor.scheme.bits
    sums = []
    for span, tile in _tiles(raw, dtype, plan):
        at = span.row * row_bytes(plan.cols, bits) + span.col * bits // 8
        own = part(tensor.params, span, plan)
        stored = tensor.packed[at : at + span.rows * row_bytes(span.cols, bits)]
        sums.append((loops.measure(tile, own, grid, stored), span.rows * span.cols))
    return metric.total(sums)


class NonFinite:
    """Where a tensor holds NaN, infinity or values beyond float32: their number and the first flat index."""

    def __init__(self, count: int, first: int, beyond: bool) -> None:
        self.count, self.first, self.beyond = count, first, beyond

    def __add__(self, other: NonFinite) -> NonFinite:
        known = self if self.count else other
        return NonFinite(self.count + other.count, known.first, self.beyond or other.beyond)

    def describe(self) -> str:
        """A description of the problem."""
        what = "values beyond the range of float32" if self.beyond else "NaN or infinite values"
        return f"{self.count} {what}, the first at flat index {self.first}"


def nonfinite(raw: NDArray[np.uint8], dtype: str, start: int) -> NonFinite:
    """The non-finite weights among these bytes, whose first weight has flat index `start`."""
    values = to_float32(raw, dtype)
    wrong = ~np.isfinite(values)
    count = int(np.count_nonzero(wrong))
    beyond = bool(dtype == "F64" and count and np.isfinite(raw.view("<f8")[wrong]).all())
    return NonFinite(count, start + int(wrong.argmax()) if count else 0, beyond)
