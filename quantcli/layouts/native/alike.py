"""Small tensors of one shape and scheme, read together: one call of the system and of the kernels for all of them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby, islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from quantcli import kernels, scales
from quantcli.dtypes import DTYPES, to_float32
from quantcli.formats import code_grid, fixed_codebook
from quantcli.kernels import LEVELS, QuantParams, row_bytes
from quantcli.layouts.native.model import not_finite
from quantcli.layouts.native.parts import parts
from quantcli.scales import Store
from quantcli.tensors.rows import TILE

if TYPE_CHECKING:
    from quantcli.kernels import Bytes, Floats
    from quantcli.layouts.native.model import Tensor
    from quantcli.scheme import Scheme
    from quantcli.tensors.rows import Grouping

T = TypeVar("T")

MANY = 4096
"""Tensors of a run at most: the names of more take more memory than their weights."""

Kind = tuple["Scheme | None", "Grouping | None", str, str, tuple[int, ...]]
"""Scheme, grouping, dtype of the scales, dtype and shape."""


def runs(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors that follow each other, in runs that are decoded together, or one by one."""
    return cut((t, kind_of(t) if t.scheme is not None else None, t.stored.info.numel) for t in tensors)


def cut(items: Iterable[tuple[T, Hashable, int]]) -> Iterator[list[T]]:
    """Items that follow each other, in runs that are worked on together. items: each with a key that all of a run
    share, None for one that is worked on alone, and its number of weights."""
    for (key, numel), same in groupby(items, lambda item: (item[1], item[2])):
        most = 1 if key is None else max(1, min(MANY, TILE // numel))
        while run := [one for one, _, _ in islice(same, most)]:
            yield run


def kind_of(tensor: Tensor) -> Kind | None:
    """What tensors that are read as floats together have in common; None for one that is read by itself."""
    stored = tensor.stored
    info, scheme = stored.info, stored.scheme
    simple = _floating(info.dtype, info.shape) if scheme is None else _simple(scheme, stored.grouping)
    return (scheme, stored.grouping, stored.scale_dtype, info.dtype, info.shape) if simple else None


@lru_cache(maxsize=1024)
def _floating(dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor that is stored as it was is a small one of floats."""
    return DTYPES[dtype].quantizable and is_small(shape)


def is_small(shape: tuple[int, ...]) -> bool:
    """Whether a tensor has weights, and so few that it is worth while to read several together."""
    return 0 < 2 * math.prod(shape) <= TILE


@lru_cache(maxsize=1024)
def _simple(scheme: Scheme, plan: Grouping) -> bool:
    """Whether the codes of a small tensor are followed by nothing but scales of its groups."""
    rows = plan.shared is None and plan.height == 1 and plan.digits is None
    return rows and parts(scheme) == ["packed", "scale", "shape"] and is_small((plan.rows, plan.cols))


def floats(first: Tensor, names: Sequence[str]) -> Floats:
    """The weights (tensors, weights) of a run as float32. first: one of it; names: of all. Raises DataError where a
    scale is not finite."""
    if first.scheme is not None:
        return decoded(first, names).reshape(len(names), -1)
    info = first.stored.info
    raw = np.empty(len(names) * info.nbytes, np.uint8)
    first.source.read_each(names, raw.data)
    return to_float32(raw, info.dtype).reshape(len(names), -1)


def decoded(first: Tensor, names: Sequence[str]) -> Floats:
    """The float32 weights of codes, one tensor after another. Raises DataError where a scale is not finite."""
    scheme, plan = first.scheme, first.stored.grouping
    assert scheme is not None and plan is not None
    packed, params = codes(first, names)
    shape, group = (len(names) * plan.rows, plan.cols), min(plan.group, plan.cols)
    return kernels.load().decode(packed.reshape(-1), shape, group, params, code_grid(scheme))


def codes(first: Tensor, names: Sequence[str]) -> tuple[Bytes, QuantParams]:
    """The codes (rows, bytes) of a run and their parameters, one tensor after another. Raises DataError where a scale
    is not finite."""
    stored, source, count = first.stored, first.source, len(names)
    scheme, plan = stored.scheme, stored.grouping
    assert scheme is not None and plan is not None
    packed = np.empty((count * plan.rows, row_bytes(plan.cols, scheme.bits)), np.uint8)
    source.read_each([f"{name}_packed" for name in names], packed.reshape(-1).data)
    raw = np.empty(count * plan.scales * DTYPES[stored.scale_dtype].bits // 8, np.uint8)
    source.read_each([f"{name}_scale" for name in names], raw.data)
    with np.errstate(over="ignore", invalid="ignore"):
        scale = scales.of(scheme).effective(raw, Store(stored.scale_dtype)).reshape(count * plan.rows, plan.groups)
    finite = np.isfinite(scale).all(axis=1)
    if not finite.all():
        raise not_finite("scale", source, names[int(np.argmin(finite)) // plan.rows])
    return packed, QuantParams(scale, None, fixed_codebook(scheme) if code_grid(scheme).mode == LEVELS else None)
