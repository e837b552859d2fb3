"""The pure core: arrays in, codes out, and back.

The pipeline runs the same steps on tiles of a file: observe, settle, encode, measure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from quantcli import kernels as table
from quantcli import metrics as metric
from quantcli import registry
from quantcli.calibrators import Calibrator, Ideal, Observed, Sharing
from quantcli.dtypes import DTYPES, from_float32, round_bfloat16, to_float32
from quantcli.errors import DataError
from quantcli.formats import Format
from quantcli.grouping import TILE, Layout, TileSpan, column_repeats, layout
from quantcli.kernels import BF16, BINARY, F16, F32, OFFSET, CodeGrid, Kernels, Kind, Tile, row_bytes
from quantcli.scheme import Scheme, scale_dtype_name
from quantcli.tensors import QuantizedTensor, QuantParams, TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Floats
    from quantcli.metrics import Metrics

_LARGEST = {"F32": 2.0**128 - 2.0**104, "BF16": 2.0**128 - 2.0**120, "F16": 65504.0}


# ---- steps on a tile ------------------------------------------------------------------------------------------


def as_tile(raw: NDArray[np.uint8], dtype: str, span: TileSpan, group: int) -> Tile:
    """The bytes of a run of weights as a tile for the kernels."""
    kind: Kind = BF16 if dtype == "BF16" else F16 if dtype == "F16" else F32
    weights = raw.view(np.uint16) if kind != F32 else to_float32(raw, dtype)
    return Tile(weights, kind, span.rows, span.cols, min(group, span.cols) or 1)


def code_grid(scheme: Scheme) -> CodeGrid:
    """The codes of a scheme."""
    return cast(Format, registry.get("formats", scheme.format)).grid(scheme)


def _calibrator(scheme: Scheme) -> Calibrator:
    return cast(Calibrator, registry.get("calibrators", scheme.calibration or ""))


def observe(kernels: Kernels, tile: Tile, scheme: Scheme, plan: Layout) -> Observed | None:
    """What the scheme's calibrator sees in a tile; None when a weight is not finite (or beyond float32)."""
    return _calibrator(scheme).observe(kernels, tile, cast("Sharing | None", plan.shared))


def merge(scheme: Scheme, earlier: Observed, later: Observed) -> Observed:
    """What was seen of two tiles, in file order."""
    return _calibrator(scheme).merge(earlier, later)


def default_scale_dtype(scheme: Scheme, dtype: str) -> str:
    """The safetensors dtype scales are stored in, unless the weights turn out not to fit it.

    Above 8 bits a float16 scale would cost more than the codes gain: half a unit of its last place is 8 steps of a
    16-bit grid.

    >>> default_scale_dtype(Scheme(bits=4), "BF16"), default_scale_dtype(Scheme(bits=4), "F32")
    ('BF16', 'F16')
    """
    if scheme.scale_dtype is not None:
        return scale_dtype_name(scheme.scale_dtype)
    if scheme.bits > 8:
        return "F32"
    return dtype if dtype in ("BF16", "F16") else "F16"


def settle(seen: Observed, scheme: Scheme, scale_dtype: str) -> QuantParams | None:
    """Parameters of the groups, rounded to what the file stores; None when its dtype does not hold them.

    A scale below the normal range of float32 is raised to it: such groups decode to multiples of 2^-126, most to 0.
    Where the outermost code would decode beyond the scale's dtype (readers multiply in it) the scale is the next
    smaller one.
    """
    ideal: Ideal = _calibrator(scheme).solve(seen, scheme)
    wanted = _representable(ideal.scale, scheme, scale_dtype)
    zero = _settled_zero(ideal, scheme, scale_dtype)
    if wanted is None or (zero is None and ideal.zero is not None):
        return None
    scale, grid, limit = _stored(wanted, scale_dtype), code_grid(scheme), _LARGEST[scale_dtype]
    farthest = float(np.abs(wanted).max()) * grid.umax * 1.01 + (float(np.abs(zero).max()) if zero is not None else 0.0)
    if not farthest < limit:
        if (_outermost(wanted, zero, grid) > limit * 1.001).any():
            return None
        scale = np.where(_outermost(scale, zero, grid) > limit, _next_smaller(scale, scale_dtype), scale)
        if not (_outermost(scale, zero, grid) <= limit).all():
            return None
    if grid.mode != BINARY and not scale.all():
        return None
    return QuantParams(scale, zero)


def _representable(scale: NDArray[np.float64], scheme: Scheme, scale_dtype: str) -> NDArray[np.float64] | None:
    """Scales raised to the smallest a float32 or bfloat16 is trusted with; None where float16 would lose too much.

    In float16 (multiples of 2^-24) rounding must not move the outermost of 2^(b-1) steps by more than a quarter of
    a step, unless float16 was asked for.
    """
    size = np.abs(scale)
    smallest = 2.0 ** min(scheme.bits - 24, -14) if scale_dtype == "F16" else 2.0**-126
    if float(size.min()) >= smallest:
        return scale
    if scale_dtype == "F16":
        lost = scheme.scale_dtype is None and bool(np.any((size < smallest) & (size > 0)))
        return None if lost else scale
    if code_grid(scheme).mode == BINARY:
        return scale
    return np.where(size < smallest, np.copysign(smallest, scale), scale)


def _settled_zero(ideal: Ideal, scheme: Scheme, scale_dtype: str) -> Floats | None:
    """Whole zero points, or offsets in the scale's dtype; None when there are none, and where rounding an offset
    would move the whole group by more than a quarter of a step, unless that dtype was asked for."""
    if ideal.zero is None:
        return None
    if scheme.zero_point == "int":
        return np.clip(np.rint(ideal.zero), 0, (1 << scheme.bits) - 1).astype(np.float32)
    zero = _stored(ideal.zero, scale_dtype)
    moved = bool(np.any(np.abs(zero - ideal.zero) > np.abs(ideal.scale) / 4))
    return None if moved and scheme.scale_dtype is None and scale_dtype != "F32" else zero


def _outermost(scale: NDArray[Any], zero: Floats | None, grid: CodeGrid) -> NDArray[np.float64]:
    """Largest absolute value that occurs when the codes of each group are decoded."""
    far: NDArray[np.float64] = np.abs(scale.astype(np.float64))
    if grid.mode == BINARY:
        return far
    z = np.float64(grid.zero) if zero is None else zero.astype(np.float64)
    if grid.mode == OFFSET:
        far = np.maximum(grid.umax * far, np.maximum(np.abs(z), np.abs(grid.umax * far + z)))
    else:
        far = np.maximum(np.abs(grid.umin - z), np.abs(grid.umax - z)) * far
    return far


def _next_smaller(scale: Floats, dtype: str) -> Floats:
    """The neighbours towards 0 in a scale dtype; the largest finite value where there is no finite one."""
    finite = np.clip(scale, -_LARGEST[dtype], _LARGEST[dtype])
    if dtype == "F16":
        smaller: Floats = np.nextafter(finite.astype(np.float16), np.float16(0)).astype(np.float32)
    elif dtype == "BF16":
        smaller = (finite.view(np.uint32) - np.uint32(0x10000)).view(np.float32)
    else:
        smaller = np.nextafter(finite, np.float32(0))
    return smaller


def _stored(values: NDArray[np.float64], dtype: str) -> Floats:
    """Values rounded to a storage dtype, as float32; too large ones become infinite."""
    with np.errstate(over="ignore"):
        if dtype == "F16":
            single: Floats = values.astype(np.float16).astype(np.float32)
        else:
            single = values.astype(np.float32)
    if dtype == "BF16":
        single = (round_bfloat16(single).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return single


def spread(params: QuantParams, info: TensorInfo, scheme: Scheme, plan: Layout) -> QuantParams:
    """Parameters per channel as the vector (1, cols) the kernels take; others as they are."""
    if plan.shared != "columns":
        return params
    outer, channels, inner = column_repeats(info.shape, scheme.axis)
    shape = (outer, channels, inner)

    def expand(values: Floats) -> Floats:
        per_channel = values.reshape(1, channels, 1)
        return np.ascontiguousarray(np.broadcast_to(per_channel, shape)).reshape(1, plan.cols)

    return QuantParams(expand(params.scale), None if params.zero is None else expand(params.zero))


def fold_columns(seen: Observed, info: TensorInfo, scheme: Scheme, plan: Layout) -> Observed:
    """What was seen per column, put together per channel."""
    if plan.shared != "columns":
        return seen
    shape = column_repeats(info.shape, scheme.axis)
    if "sum" in seen:
        return {k: v.reshape(shape).sum(axis=(0, 2), keepdims=True) for k, v in seen.items()}
    from quantcli.calibrators import _ranges

    return _ranges.fold({k: v.reshape(shape) for k, v in seen.items()}, (0, 2))


def stored_params(params: QuantParams, plan: Layout) -> QuantParams:
    """Parameters as the file stores them: a tensor's one set is repeated for every row, columns stay one row."""
    rows = plan.rows if plan.shared == "tensor" else params.scale.shape[0]

    def repeat(values: Floats) -> Floats:
        flat = values.reshape(1, -1) if plan.shared == "columns" else values
        return np.broadcast_to(flat, (rows, flat.shape[1])) if plan.shared == "tensor" else flat

    return QuantParams(repeat(params.scale), None if params.zero is None else repeat(params.zero))


def part(params: QuantParams, span: TileSpan, plan: Layout) -> QuantParams:
    """The parameters of one tile out of the whole tensor's."""

    def cut(values: Floats) -> Floats:
        rows = values if values.shape[0] == 1 and plan.shared else values[span.row : span.row + span.rows]
        if values.shape[1] > 1:
            rows = rows[:, span.col // plan.group : -(-(span.col + span.cols) // plan.group)]
        return np.ascontiguousarray(rows)

    return QuantParams(cut(params.scale), None if params.zero is None else cut(params.zero))


# ---- whole arrays ---------------------------------------------------------------------------------------------


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


def _tiles(raw: NDArray[np.uint8], dtype: str, plan: Layout) -> Iterator[tuple[TileSpan, Tile]]:
    size = DTYPES[dtype].bits // 8
    for span in plan.tiles():
        start = (span.row * plan.cols + span.col) * size
        yield span, as_tile(raw[start : start + span.rows * span.cols * size], dtype, span, plan.group)


def quantize(array: NDArray[Any], scheme: Scheme) -> QuantizedTensor:
    """The array in quantized form.

    array: float16, bfloat16, float32 or float64 (rounded to float32 first) of any shape; it is not modified.
    Raises DataError for NaN, infinity, values beyond float32 and scales beyond their dtype.

    >>> import numpy as np
    >>> quantize(np.array([[-1.0, 0.5, 0.25, 7.0]]), Scheme(bits=4)).codes.tolist()
    [[-1, 0, 0, 7]]
    """
    raw, dtype = _weights(array)
    info = TensorInfo("array", dtype, tuple(np.asarray(array).shape))
    plan, kernels, grid = layout(info.shape, scheme), table.load(), code_grid(scheme)
    if info.numel == 0:
        raise DataError("an empty array cannot be quantized")
    seen = []
    for _, tile in _tiles(raw, dtype, plan):
        found = observe(kernels, tile, scheme, plan)
        if found is None:
            raise DataError(nonfinite(raw, dtype, 0).describe())
        seen.append(found)
    params, settled = _settle_all(seen, info, scheme, plan, dtype)
    packed = np.empty(plan.rows * row_bytes(plan.cols, scheme.bits), np.uint8)
    for span, tile in _tiles(raw, dtype, plan):
        at = span.row * row_bytes(plan.cols, scheme.bits) + span.col * scheme.bits // 8
        own = part(params, span, plan)
        out = packed[at : at + span.rows * row_bytes(span.cols, scheme.bits)]
        kernels.encode(tile, own.scale, own.zero, grid, out)
    return QuantizedTensor(info, settled, plan, params, packed)


def _settle_all(
    seen: list[Observed], info: TensorInfo, scheme: Scheme, plan: Layout, dtype: str
) -> tuple[QuantParams, Scheme]:
    """Parameters (rows, groups) of a whole array, and the scheme with the scale dtype that held them."""
    if plan.two_pass:
        joined = _join(seen, scheme, plan)
    else:  # tiles are whole rows, or runs of groups of one row after the other
        axis = 0 if plan.cols <= TILE else 1
        joined = {k: np.concatenate([s[k] for s in seen], axis).reshape(plan.rows, plan.groups) for k in seen[0]}
    joined = fold_columns(joined, info, scheme, plan)
    first = default_scale_dtype(scheme, dtype)
    for choice in (first,) if scheme.scale_dtype else (first, "F32"):
        params = settle(joined, scheme, choice)
        if params is not None:
            name = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[choice]
            return spread(params, info, scheme, plan), scheme.with_scale_dtype(name)
    raise scale_misfit(scheme)


def _join(seen: list[Observed], scheme: Scheme, plan: Layout) -> Observed:
    if plan.shared is None:  # rows in pieces: merge those of one row, stack the rows
        pieces = len(seen) // plan.rows
        rows = [
            _join(seen[r * pieces : (r + 1) * pieces], scheme, replace(plan, shared="tensor")) for r in range(plan.rows)
        ]
        return {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}
    joined = seen[0]
    for later in seen[1:]:
        joined = merge(scheme, joined, later)
    return joined


def scale_misfit(scheme: Scheme) -> DataError:
    """The refusal of a scale that its dtype cannot hold."""
    return DataError(
        f"a scale does not fit {scheme.scale_dtype or 'float32'}",
        hint="use --scale-dtype float32" if scheme.scale_dtype not in (None, "float32") else "its range is too wide",
    )


def dequantize(tensor: QuantizedTensor) -> NDArray[np.float32]:
    """The decoded weights, float32 in the tensor's shape: what every reader of the stored codes gets.

    >>> import numpy as np
    >>> dequantize(quantize(np.array([-1.0, 0.5, 7.0]), Scheme(bits=4))).tolist()
    [-1.0, 0.0, 7.0]
    """
    plan, params = tensor.layout, tensor.params
    values = table.load().decode(
        tensor.packed, (plan.rows, plan.cols), plan.group, params.scale, params.zero, code_grid(tensor.scheme)
    )
    return values.reshape(tensor.info.shape)


def measure(tensor: QuantizedTensor, array: NDArray[Any]) -> Metrics:
    """What decoding the tensor costs against the original weights, summed as the file pipeline does.

    Raises DataError when the shapes differ.
    """
    if tuple(np.asarray(array).shape) != tensor.info.shape:
        raise DataError(f"an array of shape {np.asarray(array).shape} was not quantized to {tensor.info.shape}")
    raw, dtype = _weights(array)
    kernels, grid, plan, bits = table.load(), code_grid(tensor.scheme), tensor.layout, tensor.scheme.bits
    sums = []
    for span, tile in _tiles(raw, dtype, plan):
        at = span.row * row_bytes(plan.cols, bits) + span.col * bits // 8
        own = part(tensor.params, span, plan)
        stored = tensor.packed[at : at + span.rows * row_bytes(span.cols, bits)]
        sums.append((kernels.measure(tile, own.scale, own.zero, grid, stored), span.rows * span.cols))
    return metric.total(sums)


class NonFinite:
    """Where a tensor holds NaN, infinity or values beyond float32: their number and the first flat index."""

    def __init__(self, count: int, first: int, beyond: bool) -> None:
        self.count, self.first, self.beyond = count, first, beyond

    def __add__(self, other: NonFinite) -> NonFinite:
        known = self if self.count else other
        return NonFinite(self.count + other.count, known.first, self.beyond or other.beyond)

    def describe(self) -> str:
        """The problem in words."""
        what = "values beyond the range of float32" if self.beyond else "NaN or infinite values"
        return f"{self.count} {what}, the first at flat index {self.first}"


def nonfinite(raw: NDArray[np.uint8], dtype: str, start: int) -> NonFinite:
    """What is not finite among the weights of these bytes, whose first one has flat index `start`."""
    values = to_float32(raw, dtype)
    wrong = ~np.isfinite(values)
    count = int(np.count_nonzero(wrong))
    beyond = bool(dtype == "F64" and count and np.isfinite(raw.view("<f8")[wrong]).all())
    return NonFinite(count, start + int(wrong.argmax()) if count else 0, beyond)


def to_dtype(values: Floats, dtype: str) -> NDArray[Any]:
    """Decoded weights in a tensor's own float dtype."""
    return from_float32(values, dtype)
