"""Small tensors of one shape and scheme, quantized together: one call of the kernels for all of them.

Where the kernels find something out of the ordinary in one of them, all are done one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import kernels, scales
from quantcli.asking import rival
from quantcli.kernels import QuantParams, Rule, row_bytes
from quantcli.layouts.native.document import Result
from quantcli.layouts.writer import Alike
from quantcli.metrics import Metrics
from quantcli.passes.tiles import Visit, once
from quantcli.scales import Store
from quantcli.tensors.decided import Decided, Quantized
from quantcli.tensors.digest import digest_of
from quantcli.tensors.direct import rule_of
from quantcli.tensors.rows import TILE, TileSpan, grouping_of
from quantcli.tensors.settle import default_scale_dtype
from quantcli.tensors.tiles import as_tile

if TYPE_CHECKING:
    from quantcli.kernels import Bytes, Floats
    from quantcli.scheme import Scheme
    from quantcli.stores import Source
    from quantcli.tensors.rows import Grouping

Rules = tuple[Rule, Rule | None]
"""How a tensor is quantized in one call, and the rival that is measured beside it."""


def runs(tensors: Sequence[Decided]) -> Iterator[tuple[Rules | None, list[Decided]]]:
    """Tensors that follow each other, in runs that are quantized together by these rules, or (None) one by one."""
    for key, same in groupby(tensors, _key):
        if key is None:
            yield None, list(same)
            continue
        most, members = max(1, TILE // max(key[0].rows * key[0].cols, 1)), list(same)
        for at in range(0, len(members), most):
            yield _rules(*key), members[at : at + most]


Key = tuple["Grouping", str, "Scheme", str, tuple[int, ...]]


def _key(tensor: Decided) -> Key | None:
    """What tensors that are quantized together have in common; None for one that is done by itself."""
    if tensor.scheme is None or tensor.columns is not None or not 0 < tensor.info.numel <= TILE:
        return None
    key = (tensor.grouping, tensor.info.dtype, tensor.scheme, tensor.scale_dtype, tensor.info.shape)
    return key if _rules(*key) is not None else None


@lru_cache(maxsize=1024)
def _rules(plan: Grouping, dtype: str, scheme: Scheme, scale_dtype: str, shape: tuple[int, ...]) -> Rules | None:
    # `auto` encodes several times, and the scale of a tensor takes a look at all its weights first.
    if scheme.calibration == "auto" or scales.of(scheme).overall is not None:
        return None
    own, other = rule_of(scheme, plan, Store(scale_dtype)), rival(scheme)
    if own is None or own.height > 1:
        return None
    if other is None:
        return own, None
    measured = rule_of(other, grouping_of(shape, other), Store(default_scale_dtype(other, dtype)))
    return None if measured is None else (own, measured)


class Stacked:
    """A tensor that was quantized together with others: a producer. place: which of them it is."""

    __slots__ = ("_result", "_rows", "alike", "place", "tensor")

    def __init__(self, tensor: Quantized, place: int, alike: Alike, result: Result) -> None:
        self.tensor, self._result, self.place, self.alike = tensor, result, place, alike
        self._rows = place * tensor.grouping.rows

    def prepare(self) -> Visit:
        """Nothing."""
        return once([])

    def piece(self) -> AbstractContextManager[Stacked]:
        """Its codes."""
        return nullcontext(self)

    def end(self) -> Result:
        """Its errors and digest."""
        return self._result

    def packed(self, span: TileSpan) -> Bytes:
        bits, first = self.tensor.scheme.bits, self._rows + span.row
        begin, size = span.col * bits // 8, row_bytes(span.cols, bits)
        return np.ascontiguousarray(self.alike.packed[first : first + span.rows, begin : begin + size]).reshape(-1)

    def params(self, span: TileSpan) -> QuantParams:
        scale, zero = self.scales(span)
        group = self.tensor.grouping.group
        groups = slice(span.col // group, -(-(span.col + span.cols) // group))
        zeros = None if zero is None else zero[:, groups]
        return QuantParams(scale[:, groups], zeros, self.alike.params.codebook)

    def scales(self, span: TileSpan) -> tuple[Floats, Floats | None]:
        rows = slice(self._rows + span.row, self._rows + span.row + span.rows)
        scale, zero = self.alike.params.scale, self.alike.params.zero
        return scale[rows], None if zero is None else zero[rows]

    def overall(self) -> float:
        return 1.0

    def levels(self, span: TileSpan) -> Floats:
        book = self.alike.params.codebook
        assert book is not None
        return book.levels


def stacked(source: Source, tensors: Sequence[Any], rules: Rules, digest: str, raw: Bytes) -> Iterator[Stacked] | None:
    """A run of tensors quantized together; None where they are to be done one by one. raw: room for their bytes."""
    plan, info, count = tensors[0].grouping, tensors[0].info, len(tensors)
    size, width, view = info.nbytes, row_bytes(plan.cols, tensors[0].scheme.bits), raw.data
    source.read_each([tensor.info.name for tensor in tensors], view[: count * size])
    tile = as_tile(raw, info.dtype, TileSpan(0, count * plan.rows, 0, plan.cols), plan.group)
    packed = np.empty((count * plan.rows, width), np.uint8)
    found = kernels.load().quantize_each(tile, count, *rules, packed.reshape(-1))
    if found is None:
        return None
    params, sums = found
    alike = Alike(count, packed, params)
    return _producers(source, tensors, alike, sums.tolist(), rules[1] is not None, digest, view)


def _producers(
    source: Source,
    tensors: Sequence[Any],
    alike: Alike,
    sums: list[list[float]],
    rivalled: bool,
    digest: str,
    view: memoryview,
) -> Iterator[Stacked]:
    size, numel = tensors[0].info.nbytes, tensors[0].info.numel
    for place, (tensor, (sse, power, largest, clipped, other)) in enumerate(zip(tensors, sums)):
        metrics = Metrics(sse, power, numel, largest, int(clipped))
        known = digest_of(view[place * size : (place + 1) * size], digest)
        result = Result(metrics, known, tensor.scheme, other if rivalled else None)
        yield Stacked(tensor, place, alike, result)
        source.release(tensor.info.name)
