"""Running sums of the inputs of a layer: how many, their mean, and their second moments.

Rows are what one output of the layer is summed over. Products are of float32 for `CHUNK` weights at a time, sums of
these of float64, in the order of the samples: the same inputs give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.layouts.onnx.taps import Tap
    from quantcli.stores.onnx_graph import Call

    Floats = NDArray[np.float32]

CHUNK = 1 << 21
"""Numbers of a product: 8 MiB."""


@dataclass(slots=True)
class Moments:
    """Sums over rows of some columns. full: whether of all pairs of columns, or of squares alone.

    >>> sums = Moments(2)
    >>> sums.add(np.array([[1, 2], [3, 4]], np.float32))
    >>> sums.count, sums.mean.tolist(), sums.second.tolist()
    (2, [2.0, 3.0], [[5.0, 7.0], [7.0, 10.0]])
    """

    columns: int
    full: bool = True
    count: int = 0
    total: NDArray[np.float64] = field(init=False)
    products: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.total = np.zeros(self.columns)
        self.products = np.zeros((self.columns,) * (2 if self.full else 1))

    def add(self, rows: Floats) -> None:
        """Add rows (any number, columns)."""
        step = max(1, CHUNK // self.columns)
        for start in range(0, len(rows), step):
            part = np.ascontiguousarray(rows[start : start + step], np.float32)
            with np.errstate(over="ignore", invalid="ignore"):  # `fits` tells
                self.total += part.sum(axis=0, dtype=np.float64)
                if self.full:
                    self.products += part.T @ part
                else:
                    self.products += np.einsum("ij,ij->j", part, part, dtype=np.float64)
        self.count += len(rows)

    @property
    def fits(self) -> bool:
        """Whether float32 holds all moments so far: no product of two columns is beyond the larger of their squares."""
        squares = np.diagonal(self.products) if self.full else self.products
        return bool((squares <= float(np.finfo(np.float32).max) * self.count).all())

    @property
    def mean(self) -> NDArray[np.float64]:
        """The mean of every column."""
        return self.total / self.count

    @property
    def second(self) -> NDArray[np.float64]:
        """The mean product of all pairs of columns, or square of each."""
        return self.products / self.count


# ---- rows of what nodes take --------------------------------------------------------------------------------------


def rows_of(tap: Tap, call: Call, values: Sequence[Any], mask: NDArray[np.bool_] | None) -> Iterator[Floats]:
    """The rows that a node multiplies a weight with, in parts. values: of the tap, None for one there is not. mask:
    which of the tokens (samples, tokens) are counted, where the rows are of such."""
    if tap.kind == "patches":
        yield from patches(values[0], call, tap.kernel)
    elif tap.kind == "states":
        yield from _states(values[0], values[1], call)
    else:
        found = values[0]
        transposed = call.numbers.get("transA" if tap.kind == "rows" else "transB", 0)
        if transposed != (tap.kind == "columns"):  # so that the axis that is summed over is the last one
            found = np.swapaxes(found, -1, -2)
        if mask is not None and found.shape[:-1] == mask.shape:
            found = found[mask]
        yield found.reshape(-1, found.shape[-1])


def _pads(sizes: Sequence[int], call: Call, spans: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Zeros before and behind each axis, by the operator's attributes. spans: of the kernel with its dilations."""
    auto = call.words.get("auto_pad", "") or "NOTSET"
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        found = []
        for size, span, stride in zip(sizes, spans, strides):
            whole = max(0, (-(-size // stride) - 1) * stride + span - size)
            before = whole // 2 if auto == "SAME_UPPER" else whole - whole // 2
            found.append((before, whole - before))
        return found
    given = call.lists.get("pads") if auto == "NOTSET" else None
    given = given or (0,) * (2 * len(sizes))
    return list(zip(given[: len(sizes)], given[len(sizes) :]))


def patches(x: Floats, call: Call, kernel: Sequence[int]) -> Iterator[Floats]:
    """The patches of (samples, channels, ...) that a convolution meets, as rows of its weight (channels of a group,
    kernel); of all groups one after another."""
    axes, groups = len(kernel), call.numbers.get("group", 1)
    strides = call.lists.get("strides") or (1,) * axes
    dilations = call.lists.get("dilations") or (1,) * axes
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
    x = x.reshape(-1, *x.shape[-axes - 1 :])
    pads = _pads(x.shape[2:], call, spans, strides)
    columns = x.shape[1] // groups * int(np.prod(kernel))
    for sample in x:
        padded = np.pad(sample, [(0, 0), *pads])
        if any(size < span for size, span in zip(padded.shape[1:], spans)):
            continue
        view = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(1, axes + 1)))
        steps = (slice(None), *(slice(None, None, s) for s in strides), *(slice(None, None, d) for d in dilations))
        view = view[steps]  # (channels, places, kernel)
        view = view.reshape(groups, -1, *view.shape[1:]) if groups == 1 else _grouped(view, groups)
        order = (0, *range(2, axes + 2), 1, *range(axes + 2, 2 * axes + 2))
        turned = view.transpose(order)  # (groups, places, channels of a group, kernel)
        per = max(1, CHUNK // (columns * max(1, int(np.prod(turned.shape[2 : axes + 1])))))
        for group in turned:
            for first in range(0, len(group), per):
                yield np.ascontiguousarray(group[first : first + per]).reshape(-1, columns)


def _grouped(view: NDArray[Any], groups: int) -> NDArray[Any]:
    """The channels of a view in groups, as an axis in front; without copying."""
    channels = view.shape[0] // groups
    shape = (groups, channels, *view.shape[1:])
    strides = (view.strides[0] * channels, *view.strides)
    return np.lib.stride_tricks.as_strided(view, shape, strides, writeable=False)


def _states(after: Floats, start: Floats | None, call: Call) -> Iterator[Floats]:
    """The states before every step, of each direction. after: those behind it, (steps, directions, samples, columns),
    or (samples, steps, directions, columns) with layout 1; start: those at first, of zeros where there are none."""
    if call.numbers.get("layout", 0):
        after = np.moveaxis(after, -4, -2)
        start = None if start is None else np.swapaxes(start, -3, -2)
    after = after.reshape(-1, *after.shape[-4:])
    for number, one in enumerate(after):
        backward = [call.words.get("direction", "") == "reverse"] * one.shape[1]
        backward = [False, True] if len(backward) == 2 else backward
        first = np.zeros(one.shape[1:], np.float32) if start is None else start.reshape(-1, *one.shape[1:])
        if start is not None:
            first = first[number % len(first)]
        for way, back in enumerate(backward):
            own = one[1:, way] if back else one[:-1, way]
            yield np.concatenate([own, first[None, way]]).reshape(-1, one.shape[-1])
