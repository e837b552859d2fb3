"""Models with adapters folded in: every weight is computed as it is read, W + s * B A, some rows at a time.

The products are added up in float32, term by term in the order of the factors' ranks, so that the sums are the same on
every processor and wherever a tile begins; a matrix product of numpy's would not be. They are rounded once, to the
dtype of the model's weight.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.dtypes import DTYPES, from_float32, to_float32
from quantcli.errors import DataError, UsageError, printable
from quantcli.layouts.config import architecture
from quantcli.stores import Source, is_stream, open_source, places
from quantcli.stores.derived import Computed, Derived, by_elements, unchanged
from quantcli.stores.places import read_small
from quantcli.strict import strict_json
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Floats
    from quantcli.layouts.lora import Adapter, Change

CONFIG = "adapter_config.json"

BLOCK = 1 << 16
"""Weights that are computed at a time: they stay in the cache while the terms are added up."""

FACTORS = 4
"""Right factors that are in memory at a time, beside those that threads are at."""

_FLOATS = ("F64", "F32", "F16", "BF16")


def folded(stack: ExitStack, source: Source, path: str) -> Source:
    """A model with the adapter at a path, a folder of PEFT or a file, folded in; the adapter is closed with `stack`.

    Raises QuantcliError where it cannot be read, DataError where it is not understood as a whole or is one for another
    model.
    """
    if is_stream(source):
        raise UsageError("folding in an adapter must seek, and standard input is a pipe", place=["--lora"])
    from quantcli.layouts import lora  # which few runs need

    adapter = stack.enter_context(closing(open_source(path)))
    try:
        infos = {info.name: info for info in adapter.infos()}
        own = {info.name: info for info in source.infos()}

        def alpha(name: str) -> float:
            return float(_whole(adapter, infos[name]).ravel()[0]) if infos[name].numel == 1 else float("nan")

        found = lora.find(infos, _config(adapter, path), alpha, own, architecture(source.beside))
    except DataError as error:
        raise error.within(path) from None
    for name in [*found.changes, *found.replaced]:
        if own[name].dtype not in _FLOATS:
            problem = f"adapters are folded into weights of {', '.join(_FLOATS)}, and this one is {own[name].dtype}"
            raise DataError(problem, place=[source.path, printable(name)])
    fold = _Fold(source, adapter, found, printable(places.name(path.rstrip(os.sep)), 80))
    tensors = [fold.computed(info) for info in source.infos()]
    return Derived(source, tensors, others=[adapter])


def _config(adapter: Source, path: str) -> Mapping[str, object] | None:
    """The adapter_config.json beside an adapter; None where there is none."""
    place = os.path.join(adapter.folder or os.path.dirname(path), CONFIG)
    if not places.is_file(place):
        return None
    found = strict_json(read_small(place, 1 << 24), place)
    if not isinstance(found, dict):
        raise DataError("it is not an object", place=[CONFIG])
    return found


class _Fold:
    """The tensors of a model with an adapter folded in. shown: the adapter, for people."""

    def __init__(self, source: Source, adapter: Source, found: Adapter, shown: str) -> None:
        self.source, self.adapter, self.found, self.shown = source, adapter, found, shown
        self._infos = {info.name: info for info in adapter.infos()}
        self._columns = lru_cache(maxsize=FACTORS)(_Terms.columns)

    def computed(self, info: TensorInfo) -> Computed:
        """A tensor of the model: as it is, replaced, or changed."""
        plain, change = unchanged(self.source, info), self.found.changes.get(info.name)
        if info.name in self.found.replaced:
            base = _Read(self.adapter, self._infos[self.found.replaced[info.name]])
            fill = by_elements(info.dtype, _sum(info.dtype, base, None))
            return replace(plain, fill=fill, earlier=None, note=f"replaced by {self.shown}")
        if change is None:
            return plain
        base = _Read(self.adapter, self._infos[change.base]) if change.base else _Read(self.source, info)
        left, right = (_Read(self.adapter, self._infos[name]) for name in (change.left, change.right))
        terms = _Terms(change, info, left, right, self._columns)
        fill = by_elements(info.dtype, _sum(info.dtype, base, terms))
        note = f"{self.shown} folded in, rank {change.rank}, times {change.scale:.6g}"
        earlier = None if change.base else plain.earlier
        return replace(plain, fill=fill, earlier=earlier, note="; ".join(n for n in (plain.note, note) if n))


class _Read:
    """Values of a tensor as float32, by run."""

    def __init__(self, source: Source, info: TensorInfo) -> None:
        self.source, self.info = source, info
        if info.dtype not in _FLOATS:
            raise DataError(f"{info.dtype} is not a dtype of factors", place=[source.path, printable(info.name)])

    def __call__(self, first: int, last: int) -> Floats:
        size = DTYPES[self.info.dtype].bits // 8
        raw = np.empty((last - first) * size, np.uint8)
        self.source.read(self.info.name, first * size, raw.data)
        return to_float32(raw, self.info.dtype)


def _whole(source: Source, info: TensorInfo) -> Floats:
    return _Read(source, info)(0, info.numel)


class _Terms:
    """What is added to a weight: the columns of one factor times the rows of the other, in order. kept: the right
    factors of the last tensors, which every piece of one needs."""

    def __init__(
        self, change: Change, weight: TensorInfo, left: _Read, right: _Read, kept: Callable[[_Terms], Floats]
    ) -> None:
        self.change, self.rows = change, weight.shape[0]
        self.cols = weight.numel // self.rows
        self._left, self._right, self._kept = left, right, kept

    def columns(self) -> Floats:
        """The right factor (r, columns), scaled."""
        rank, flat = self.change.rank, self._right(0, self.change.rank * self.cols)
        matrix = flat.reshape(self.cols, rank).T if self.change.turned else flat.reshape(rank, self.cols)
        scaled: Floats = np.ascontiguousarray(matrix) * np.float32(self.change.scale)
        return scaled

    def _some_rows(self, first: int, last: int) -> Floats:
        """Rows of the left factor (rows, r)."""
        rank = self.change.rank
        if not self.change.turned:
            return self._left(first * rank, last * rank).reshape(last - first, rank)
        runs = [self._left(k * self.rows + first, k * self.rows + last) for k in range(rank)]
        return np.stack(runs, axis=1)

    def add(self, values: Floats, first: int) -> None:
        """Add to a run of weights that begins at one of them."""
        row, done = first // self.cols, 0
        while done < values.size:
            col = (first + done) % self.cols
            if col or values.size - done < self.cols:  # part of a row
                count, rows = min(self.cols - col, values.size - done), 1
            else:
                rows = min((values.size - done) // self.cols, max(1, BLOCK // self.cols))
                count = rows * self.cols
            width = count // rows
            block = values[done : done + count].reshape(rows, width)
            left, right = self._some_rows(row, row + rows), self._kept(self)[:, col : col + width]
            product = np.empty_like(block)
            total = np.zeros_like(block)
            for k in range(self.change.rank):
                np.multiply(left[:, k : k + 1], right[k], out=product)
                total += product
            block += total
            row += rows
            done += count


def _sum(dtype: str, base: _Read, terms: _Terms | None) -> Callable[[int, int], NDArray[Any]]:
    """A weight and what is added to it, in a dtype, by run."""

    def values(first: int, last: int) -> NDArray[Any]:
        found = base(first, last)
        if terms is not None:
            with np.errstate(invalid="ignore", over="ignore"):
                terms.add(found, first)
        found[np.isnan(found)] = np.nan  # whose payload could be rounded to a number
        with np.errstate(over="ignore"):  # what is beyond a float16 becomes infinite, and is refused as such
            return from_float32(found, dtype)

    return values
