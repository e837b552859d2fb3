"""Codes that no other layout takes, because one tool alone has their levels or because their groups are not runs of the
last axis of a weight: how rows with such runs are read.

An audit can compare them with what rounding makes of a base in the same places.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Floats

Values = Callable[[int, int], "Floats"]
"""A run of weights, first and last, in C order."""

PIECE = 1 << 20
"""Weights that are read at a time where rows are not runs of them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Regrouped:
    """How weights are rows with groups.

    shape: rows, and weights of each. group: neighbours in a row that share a scale; the last may be fewer. bits: of a
    code; symmetric: whether a code u stands for (u - 2^(b-1)) * scale, else for (u - zero) * scale. levels: what codes
    stand for instead, in ascending order, times the scale; empty for whole numbers. single: whether all weights share
    one scale. scale_dtype: of the stored scales; exact_scales: whether these are floats, and not codes themselves.
    params(rows): scales and zero points (rows, groups) of some rows, given by number. taken(values, rows): those rows
    of any tensor of the shape; gained: whether their columns are divided by what the layout multiplies them with.
    """

    shape: tuple[int, int]
    group: int
    bits: int
    symmetric: bool
    single: bool
    scale_dtype: str
    params: Callable[[NDArray[np.intp]], tuple[Floats, Floats | None]]
    taken: Callable[[Values, NDArray[np.intp]], Floats]
    levels: tuple[float, ...] = ()
    exact_scales: bool = True
    gained: bool = False


def plain(cols: int, values: Values, rows: NDArray[np.intp]) -> Floats:
    """Rows that are runs of `cols` weights.

    >>> plain(3, lambda first, last: np.arange(first, last, dtype=np.float32), np.array([0, 2]))
    array([[0., 1., 2.],
           [6., 7., 8.]], dtype=float32)
    """
    starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
    ends = [*starts[1:], len(rows)]
    parts = [values(int(rows[at]) * cols, (int(rows[end - 1]) + 1) * cols) for at, end in zip(starts, ends)]
    return np.concatenate(parts).reshape(len(rows), cols)


def in_order(order: NDArray[np.intp], values: Values, rows: NDArray[np.intp]) -> Floats:
    """Rows whose weights are put in another order."""
    return plain(len(order), values, rows)[:, order]


def of_axis(shape: tuple[int, ...], axis: int, values: Values, rows: NDArray[np.intp]) -> Floats:
    """Rows each of which is all that has one index of an axis.

    >>> of_axis((2, 3), 1, lambda first, last: np.arange(first, last, dtype=np.float32), np.array([0, 2]))
    array([[0., 3.],
           [2., 5.]], dtype=float32)
    """
    lead, size, trail = _around(shape, axis)
    step, slab = max(PIECE // (size * trail), 1), size * trail
    parts = [
        values(at * slab, min(at + step, lead) * slab).reshape(-1, size, trail)[:, rows].swapaxes(0, 1)
        for at in range(0, lead, step)
    ]
    return np.concatenate([part.reshape(len(rows), -1) for part in parts], axis=1)


def along_axis(shape: tuple[int, ...], axis: int, values: Values, rows: NDArray[np.intp]) -> Floats:
    """Rows that run along an axis, one for each place in the other ones.

    >>> along_axis((2, 3), 0, lambda first, last: np.arange(first, last, dtype=np.float32), np.array([0, 2]))
    array([[0., 3.],
           [2., 5.]], dtype=float32)
    """
    _, size, trail = _around(shape, axis)
    found, step = np.empty((len(rows), size), np.float32), max(PIECE // trail, 1)
    places, others = np.divmod(rows, trail)
    for place in np.unique(places):
        own = places == place
        for at in range(0, size, step):
            end, first = min(at + step, size), int(place) * size
            piece = values((first + at) * trail, (first + end) * trail).reshape(-1, trail)
            found[own, at:end] = piece[:, others[own]].T
    return found


def _around(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    """Indices before an axis, on it and behind it."""
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def by_scales(
    shape: tuple[int, ...], axis: int | None, block: int, scale: Floats, zero: Floats | None, bits: int, dtype: str
) -> Regrouped:
    """Codes of a weight of this shape. axis: along which scales differ, None where there is one; block: indices of it
    that share one, or 0. scale: all of them, in C order; zero: their zero points, as codes; dtype: of stored scales."""
    zero, size = _but_the_middle(zero, bits), math.prod(shape)
    taken: Callable[[Values, NDArray[np.intp]], Floats]
    if axis is None:
        rows = shape[0] if len(shape) > 1 else 1
        cols, laid, taken = size // rows, (1, 1, 1), partial(plain, size // rows)
    elif not block:
        rows, cols = shape[axis], size // shape[axis]
        laid, taken = (1, 1, rows), partial(of_axis, shape, axis)
    else:
        lead, cols, trail = _around(shape, axis)
        rows = lead * trail
        laid, taken = (lead, -(-cols // block), trail), partial(along_axis, shape, axis)

    def params(found: NDArray[np.intp]) -> tuple[Floats, Floats | None]:
        places, others = np.divmod(found % (laid[0] * laid[2]), laid[2])
        scales, zeros = (None if v is None else v.reshape(laid)[places, :, others] for v in (scale, zero))
        assert scales is not None
        return scales, zeros

    return Regrouped(
        shape=(rows, cols),
        group=min(block or cols, cols),
        bits=bits,
        symmetric=zero is None,
        single=axis is None,
        scale_dtype=dtype,
        params=params,
        taken=taken,
    )


def by_index(
    shape: tuple[int, int], group_of: NDArray[np.intp], scale: Floats, zero: Floats | None, bits: int, dtype: str
) -> Regrouped | None:
    """Codes of a matrix each of whose columns has the number of its group, with scales and zero points (rows, groups);
    None where groups differ in size."""
    zero, group = _but_the_middle(zero, bits), -(-shape[1] // scale.shape[1])
    order = np.argsort(group_of, kind="stable")
    if not np.array_equal(group_of[order], np.arange(shape[1]) // group):
        return None
    return Regrouped(
        shape=shape,
        group=group,
        bits=bits,
        symmetric=zero is None,
        single=False,
        scale_dtype=dtype,
        params=lambda rows: (scale[rows], None if zero is None else zero[rows]),
        taken=partial(in_order, order),
    )


def _but_the_middle(zero: Floats | None, bits: int) -> Floats | None:
    """Zero points, unless all are the middle of the codes, as of symmetric ones."""
    return None if zero is None or (zero == 1 << (bits - 1)).all() else zero
