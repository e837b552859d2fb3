"""The tensors of a model as floats in one safetensors file, run by run, whatever layout they were in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.dtypes import DTYPES
from quantcli.errors import DataError, printable
from quantcli.floats import plain_metadata
from quantcli.layouts.native import alike
from quantcli.models import Model, View, as_stored, view_of
from quantcli.passes.tiles import COPY, Progress, Visit, begun, once, walk
from quantcli.stores import destinations
from quantcli.stores.safetensors import lay_out_all
from quantcli.tensors.info import TensorInfo, alone

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.layouts.native.model import Tensor
    from quantcli.stores.destinations import OutputFile


def write(
    model: Model,
    path: str,
    *,
    dtype: str | None,
    force: bool,
    threads: int,
    progress: Progress | None,
    within: str | None = None,
) -> int:
    """Write the tensors of a model to a safetensors file; its size in bytes.

    dtype: the safetensors dtype of decoded tensors instead of their own. within: the hidden folder in which the file is
    made, None for one of its own. Raises QuantcliError.
    """
    metadata = plain_metadata(model.source)
    infos = [_target(info, coded, dtype) for info, coded in model.kinds()]
    try:
        kinds = [alone(info.dtype, info.shape) for info in infos]
        places = lay_out_all([info.name for info in infos], kinds, metadata)
    except DataError as error:
        raise error.within(model.source.path) from None
    destinations.check_space(path, places.size, model.source.path)
    with destinations.file(path, places.size, force=force, within=within) as out:
        advance = begun(progress, sum(info.nbytes for info in infos))
        decoding = _Decoding(model.source.path, dtype, out, advance)
        for at, piece in places.header(metadata):
            out.write(at, piece)
        walk(decoding.visits(model, places.starts), threads=threads)
        model.source.check_unchanged()
        out.sync()
        places.check(out.temp, path)
        out.publish()
    return places.size


class _Decoding:
    """Decodes tensors into a file. path: of the model; dtype: of decoded tensors instead of their own."""

    def __init__(self, path: str, dtype: str | None, out: OutputFile, advance: Callable[[int], None]) -> None:
        self._path, self._dtype, self._out, self._advance = path, dtype, out, advance

    def visits(self, model: Model, starts: Sequence[int]) -> Iterator[Visit]:
        """The visits of all tensors; small ones that are alike have one together. starts: their places in the file."""
        if model.own is None:
            yield from map(self._visit, model.values(), starts)
            return
        first = 0
        for run in alike.runs(model.own.values()):
            own, first = starts[first : first + len(run)], first + len(run)
            yield self._visit(view_of(run[0]), own[0]) if len(run) == 1 else once([partial(self._together, run, own)])

    def _visit(self, view: View, at: int) -> Visit:
        if view.scheme is None and view.stored is not None:
            yield [partial(self._copy, view, start, at) for start in range(0, view.info.nbytes, COPY)]
        else:
            yield [partial(self._decode, view, first, last, at) for first, last in view.blocks]

    def _copy(self, view: View, start: int, at: int) -> None:
        assert view.stored is not None
        block = view.stored.read_bytes(view.stored.name, start, min(COPY, view.info.nbytes - start))
        self._out.write(at + start, block.data)
        self._advance(len(block))

    def _decode(self, view: View, first: int, last: int, at: int) -> None:
        target = _target(view.info, view.scheme is not None, self._dtype).dtype
        values = view.values(first, last, target)
        if not _finite(values):
            raise self._unfit(view.info, target)
        self._out.write(at + first * DTYPES[target].bits // 8, values.data.cast("B"))
        self._advance(values.nbytes)

    def _together(self, run: Sequence[Tensor], starts: Sequence[int]) -> None:
        """Decode tensors that are alike; those that follow each other in the file are written at once."""
        own, target = run[0].dtype, self._dtype or run[0].dtype
        values = as_stored(alike.decoded(run[0], [t.name for t in run]).reshape(-1), own, target).reshape(len(run), -1)
        if not _finite(values):
            raise self._unfit(next(t.stored.info for t, row in zip(run, values) if not _finite(row)), target)
        size, first = values.nbytes // len(run), 0
        for last in range(1, len(run) + 1):
            if last == len(run) or starts[last] != starts[first] + (last - first) * size:
                self._out.write(starts[first], values[first:last].data.cast("B"))
                first = last
        self._advance(values.nbytes)

    def _unfit(self, info: TensorInfo, dtype: str) -> DataError:
        problem, place = f"a decoded weight does not fit {dtype}", [self._path, printable(info.name)]
        return DataError(problem, place=place, hint="use --dtype float32")


def _finite(values: NDArray[Any]) -> bool:
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


def _target(info: TensorInfo, coded: bool, dtype: str | None) -> TensorInfo:
    return replace(info, dtype=dtype) if dtype is not None and coded else info
