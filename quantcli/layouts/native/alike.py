"""Small tensors of one shape and scheme, decoded together: one call of the kernels for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby, islice
from typing import TYPE_CHECKING

import numpy as np

from quantcli import kernels, scales
from quantcli.dtypes import DTYPES
from quantcli.formats import code_grid, fixed_codebook
from quantcli.kernels import LEVELS, QuantParams, row_bytes
from quantcli.layouts.native.parts import parts
from quantcli.scales import Store
from quantcli.tensors.rows import TILE

if TYPE_CHECKING:
    from quantcli.kernels import Floats
    from quantcli.layouts.native.model import Tensor
    from quantcli.scheme import Scheme
    from quantcli.tensors.rows import Grouping

Key = tuple["Scheme", "Grouping", str, str, tuple[int, ...]]


def runs(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors that follow each other, in runs that are decoded together, or one by one."""
    for key, same in groupby(tensors, _key):
        most = 1 if key is None else max(1, TILE // max(key[1].rows * key[1].cols, 1))
        while run := list(islice(same, most)):
            yield run


def _key(tensor: Tensor) -> Key | None:
    """What tensors that are decoded together have in common; None for one that is decoded by itself."""
    stored = tensor.stored
    if stored.scheme is None or not _simple(stored.scheme, stored.grouping):
        return None
    return stored.scheme, stored.grouping, stored.scale_dtype, stored.info.dtype, stored.info.shape


@lru_cache(maxsize=1024)
def _simple(scheme: Scheme, plan: Grouping) -> bool:
    """Whether the codes of a tensor are followed by nothing but scales of its groups."""
    rows = plan.shared is None and plan.height == 1 and plan.digits is None
    return rows and parts(scheme) == ["packed", "scale", "shape"] and 0 < 2 * plan.rows * plan.cols <= TILE


def decoded(tensors: Sequence[Tensor]) -> Floats:
    """The float32 weights of a run, one tensor after another. Raises DataError where a scale is not finite."""
    stored, count = tensors[0].stored, len(tensors)
    scheme, plan = stored.scheme, stored.grouping
    assert scheme is not None and plan is not None
    names, source = [tensor.name for tensor in tensors], tensors[0].source
    packed = np.empty(count * plan.rows * row_bytes(plan.cols, scheme.bits), np.uint8)
    source.read_each([f"{name}_packed" for name in names], packed.data)
    raw = np.empty(count * plan.scales * DTYPES[stored.scale_dtype].bits // 8, np.uint8)
    source.read_each([f"{name}_scale" for name in names], raw.data)
    with np.errstate(over="ignore", invalid="ignore"):
        scale = scales.of(scheme).effective(raw, Store(stored.scale_dtype)).reshape(count * plan.rows, plan.groups)
    if not np.isfinite(scale).all():
        for tensor in tensors:
            for span in plan.tiles():
                tensor.params(span)  # raises the error that names it
    grid = code_grid(scheme)
    book = fixed_codebook(scheme) if grid.mode == LEVELS else None
    shape, group = (count * plan.rows, plan.cols), min(plan.group, plan.cols)
    return kernels.load().decode(packed, shape, group, QuantParams(scale, None, book), grid)
